//! Files one behind the other, as `tar` writes them: how a block comes to a node in one request.
//!
//! Why tar: `tar -C 01ARZ3… -c . | curl --data-binary @- …` sends a block without any tool of ours.
//!
//! ```text
//! archive  { header of 512 bytes | the file's bytes | zeros up to a multiple of 512 } | at least one header of zeros
//! header   0 name (100) · 124 size in octal (12) · 148 checksum (8) · 156 type · 257 "ustar" · 345 front of the name (155)
//! ```
//!
//! Regular files and directories are known; links, devices and the extensions of other tars are refused.
//!
//! Source: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar for sizes of 8 GiB and more.

/// Everything is a multiple of this.
pub const RECORD_BYTES: usize = 512;
/// Most bytes of a file.
const FILE_BYTES_MAX: u64 = 1 << 42;

/// What is told of the files, in order.
pub trait Files {
    /// A file of so many bytes begins.
    ///
    /// # Errors
    /// It is not wanted.
    fn begin(&mut self, name: &str, bytes: u64) -> Result<(), String>;
    /// Its next bytes.
    ///
    /// # Errors
    /// They cannot be kept.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String>;
    /// It is whole.
    ///
    /// # Errors
    /// It cannot be kept.
    fn end(&mut self) -> Result<(), String>;
}

/// Reads an archive as its bytes come.
#[derive(Debug, Default)]
pub struct Reader {
    header: Vec<u8>,
    /// Bytes of the file that are still to come.
    body: u64,
    /// Bytes behind it that mean nothing.
    padding: u64,
    /// A directory has no bytes and nobody is told of it.
    is_file: bool,
    ended: bool,
}

impl Reader {
    /// Takes bytes.
    ///
    /// # Errors
    /// They are no archive, or the file is not wanted.
    pub fn feed(&mut self, mut bytes: &[u8], files: &mut dyn Files) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.ended {
                return Ok(());
            }
            if self.body > 0 {
                let (own, rest) = cut(bytes, self.body);
                files.bytes(own)?;
                self.body -= own.len() as u64;
                bytes = rest;
                if self.body == 0 {
                    files.end()?;
                }
            } else if self.padding > 0 {
                let (own, rest) = cut(bytes, self.padding);
                self.padding -= own.len() as u64;
                bytes = rest;
            } else {
                let (own, rest) = cut(bytes, (RECORD_BYTES - self.header.len()) as u64);
                self.header.extend_from_slice(own);
                bytes = rest;
                if self.header.len() == RECORD_BYTES {
                    self.entry(files)?;
                    self.header.clear();
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, files: &mut dyn Files) -> Result<(), String> {
        let header = &self.header;
        if header.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(());
        }
        let said = octal(&header[148..156]).ok_or("the archive has a header without a checksum")?;
        let field = |(i, byte): (usize, &u8)| u64::from(if (148..156).contains(&i) { b' ' } else { *byte });
        if header.iter().enumerate().map(field).sum::<u64>() != said {
            return Err("this is no tar archive, or it is damaged: the checksum of a header differs".to_owned());
        }
        let size = size(&header[124..136]).filter(|size| *size <= FILE_BYTES_MAX);
        let size = size.ok_or("the archive has a file whose length is no length")?;
        let name = text(&header[..100]).zip(text(&header[345..500]));
        let (name, front) = name.ok_or("the archive has a name that is not UTF-8")?;
        let is_ustar = header[257..262] == *b"ustar" && header[262] == 0;
        let name = if is_ustar && !front.is_empty() { format!("{front}/{name}") } else { name.to_owned() };
        match header[156] {
            b'0' | 0 => {
                files.begin(name.trim_start_matches("./"), size)?;
                if size == 0 {
                    files.end()?;
                }
                (self.body, self.is_file) = (size, true);
            }
            b'5' => (self.body, self.is_file) = (0, false),
            other => {
                return Err(format!(
                    "{name:?} is of type {:?}, only files and directories are taken",
                    char::from(other)
                ));
            }
        }
        self.padding = padding(self.body);
        Ok(())
    }

    /// Whether the archive is whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.ended
    }
}

/// The header of a file; its bytes and [`padding`] zeros follow.
#[must_use]
pub fn header(name: &str, bytes: u64) -> Vec<u8> {
    let mut out = vec![0; RECORD_BYTES];
    let name = &name.as_bytes()[..name.len().min(100)];
    out[..name.len()].copy_from_slice(name);
    out[100..108].copy_from_slice(b"0000644\0");
    out[108..116].copy_from_slice(b"0000000\0");
    out[116..124].copy_from_slice(b"0000000\0");
    if bytes < 1 << 33 {
        out[124..136].copy_from_slice(format!("{bytes:011o}\0").as_bytes());
    } else {
        out[124] = 0x80;
        out[128..136].copy_from_slice(&bytes.to_be_bytes());
    }
    out[136..148].copy_from_slice(b"00000000000\0");
    out[148..156].copy_from_slice(b"        ");
    out[156] = b'0';
    out[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = out.iter().map(|byte| u64::from(*byte)).sum();
    out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out
}

/// How many zeros follow a file of so many bytes.
#[must_use]
pub fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(RECORD_BYTES as u64) - bytes
}

fn cut(bytes: &[u8], most: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len()))
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field.split(|byte| *byte == 0).next().unwrap_or_default()).ok()
}

fn octal(field: &[u8]) -> Option<u64> {
    u64::from_str_radix(text(field)?.trim(), 8).ok()
}

fn size(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let (front, number) = field.split_last_chunk::<8>()?;
    let is_small = front[0] == 0x80 && front[1..].iter().all(|byte| *byte == 0);
    is_small.then(|| u64::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default, Debug, PartialEq, Eq)]
    struct Kept(Vec<(String, u64, Vec<u8>)>, usize);

    impl Files for Kept {
        fn begin(&mut self, name: &str, bytes: u64) -> Result<(), String> {
            self.0.push((name.to_owned(), bytes, Vec::new()));
            if name == "bad" { Err("not wanted".to_owned()) } else { Ok(()) }
        }

        fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
            self.0.last_mut().unwrap().2.extend_from_slice(bytes);
            Ok(())
        }

        fn end(&mut self) -> Result<(), String> {
            self.1 += 1;
            Ok(())
        }
    }

    fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, bytes) in files {
            out.extend(header(name, bytes.len() as u64));
            out.extend_from_slice(bytes);
            out.resize(out.len().next_multiple_of(RECORD_BYTES), 0);
        }
        out.resize(out.len() + 2 * RECORD_BYTES, 0);
        out
    }

    proptest! {
        #[test]
        fn files_come_back_however_the_bytes_are_cut(lengths in proptest::collection::vec(0_usize..1200, 0..5), piece in 1_usize..900) {
            let files: Vec<_> = lengths.iter().map(|len| ("chunks/000001", vec![7_u8; *len])).collect();
            let (mut reader, mut kept) = (Reader::default(), Kept::default());
            for bytes in archive(&files).chunks(piece) {
                reader.feed(bytes, &mut kept).unwrap();
            }
            prop_assert!(reader.is_whole());
            let want: Vec<_> = files.iter().map(|(n, b)| ((*n).to_owned(), b.len() as u64, b.clone())).collect();
            prop_assert_eq!(kept, Kept(want, files.len()));
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _refused = Reader::default().feed(&bytes, &mut Kept::default());
        }
    }

    #[test]
    fn what_the_system_s_tar_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("chunks")).unwrap();
        std::fs::write(dir.path().join("chunks/000001"), vec![5; 3000]).unwrap();
        std::fs::write(dir.path().join("index"), b"abc").unwrap();
        let Ok(made) = std::process::Command::new("tar").args(["-c", "."]).current_dir(dir.path()).output() else {
            eprintln!("SKIPPED: no tar");
            return;
        };
        let (mut reader, mut kept) = (Reader::default(), Kept::default());
        reader.feed(&made.stdout, &mut kept).unwrap();
        kept.0.sort();
        let names: Vec<_> = kept.0.iter().map(|(name, bytes, _)| (name.as_str(), *bytes)).collect();
        assert_eq!((reader.is_whole(), names), (true, vec![("chunks/000001", 3000), ("index", 3)]));
    }

    #[test]
    fn what_is_no_file_or_not_wanted_is_refused() {
        let feed = |bytes: &[u8]| Reader::default().feed(bytes, &mut Kept::default()).unwrap_err();
        assert!(feed(&[1; 512]).contains("checksum"));
        assert_eq!(feed(&archive(&[("bad", vec![1])])), "not wanted");
        let mut link = archive(&[("x", Vec::new())]);
        link[156] = b'2';
        link[153] += 2;
        assert!(feed(&link).contains("type '2'"), "{}", feed(&link));
        let mut reader = Reader::default();
        reader.feed(&archive(&[("x", vec![1; 5])])[..700], &mut Kept::default()).unwrap();
        assert!(!reader.is_whole(), "it broke off");
        assert_eq!(size(&header("x", 1 << 40)[124..136]), Some(1 << 40));
    }
}
