//! Goal: the disk in memory keeps and loses what a real one may, no more and no less. Method: small files, each fault by itself.

use super::*;

fn read(disk: &FaultDisk, name: &str) -> Option<Vec<u8>> {
    disk.bytes(Path::new(name))
}

#[test]
fn without_room_files_do_not_grow_and_what_was_reserved_can_be_written() {
    let disk = FaultDisk::new();
    let file = disk.create(Path::new("d/a")).unwrap();
    file.preallocate(100).unwrap();
    disk.leave_free(30);
    file.write_at(50, &[1; 70]).unwrap();
    assert!(
        matches!(file.write_at(110, &[2; 50]), Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull)
    );
    assert_eq!((file.len().unwrap(), disk.no_room()), (130, 1), "what fits is written");
    assert!(file.preallocate(131).is_err() && file.preallocate(130).is_ok());
    file.write_at(0, &[3; 130]).unwrap();
    disk.fill(false);
    file.write_at(130, &[4; 10]).unwrap();
    assert_eq!(file.len().unwrap(), 140);
}

#[test]
fn what_was_synced_survives_and_what_was_not_may_be_torn() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = FaultDisk::new();
        let file = disk.create(Path::new("d/a")).unwrap();
        file.write_at(0, &[1; 1024]).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("d")).unwrap();
        file.write_at(1024, &[2; 2048]).unwrap();
        disk.crash(seed);
        let bytes = read(&disk, "d/a").unwrap();
        assert_eq!(&bytes[..1024], &[1; 1024]);
        assert!(bytes[1024..].iter().all(|&b| b == 0 || b == 2), "nothing is invented");
        seen.insert(bytes);
        assert!(file.write_at(0, b"x").is_err(), "a file of a former life is dead");
    }
    assert!(seen.len() > 20, "chance makes many ruins, it made {}", seen.len());
}

#[test]
fn a_name_is_durable_after_its_directory_was_synced() {
    let lost = (0..20).filter(|&seed| {
        let disk = FaultDisk::new();
        disk.create(Path::new("d/a")).unwrap().sync_all().unwrap();
        disk.crash(seed);
        read(&disk, "d/a").is_none()
    });
    assert!((1..20).contains(&lost.count()));
}

#[test]
fn a_failed_sync_loses_bytes_that_stay_visible_until_the_cache_is_dropped() {
    let disk = FaultDisk::new();
    let file = disk.create(Path::new("d/a")).unwrap();
    disk.fail_sync_after(0);
    file.write_at(0, b"lost").unwrap();
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(read(&disk, "d/a").unwrap(), b"lost");
    file.drop_cache().unwrap();
    assert_eq!(read(&disk, "d/a").unwrap(), b"");
}

#[test]
fn one_write_below_a_directory_is_damaged() {
    let disk = FaultDisk::new();
    let (inside, beside) = (disk.create(Path::new("d/a")).unwrap(), disk.create(Path::new("e/a")).unwrap());
    disk.damage_write(Path::new("d"), 1);
    beside.write_at(0, &[0; 9]).unwrap();
    inside.write_at(0, &[0; 9]).unwrap();
    assert!(!disk.has_damaged_write());
    inside.write_at(9, &[0; 9]).unwrap();
    inside.write_at(18, &[0; 9]).unwrap();
    assert!(disk.has_damaged_write());
    assert_eq!(read(&disk, "e/a").unwrap(), [0; 9]);
    let bits: u32 = read(&disk, "d/a").unwrap().iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(bits, 1);
}

#[test]
fn after_the_stop_nothing_changes() {
    let disk = FaultDisk::new();
    let file = disk.create(Path::new("d/a")).unwrap();
    disk.stop_after(1);
    file.write_at(0, b"a").unwrap();
    assert!(file.write_at(1, b"b").is_err() && file.sync_data().is_err());
    assert_eq!(read(&disk, "d/a").unwrap(), b"a");
}
