//! What becomes of each block of a source.
//!
//! Pure where it can be; only marks and tombstones are looked for in the source.

use std::collections::{BTreeMap, BTreeSet};

use engram_model::block::BlockId;
use engram_storage::block::{Meta, Tombstones};
use engram_storage::object::Store;

use crate::blocks::import::acceptable;

/// What becomes of external labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Whether they are written into the series.
    pub add: bool,
    /// Those that are not, though others are.
    pub drop: Vec<String>,
}

/// A block that is written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Its name.
    pub(super) id: BlockId,
    /// Added to every series.
    pub(super) labels: BTreeMap<String, String>,
    /// Why, for people.
    pub(super) why: String,
}

/// What is done with a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, and that is right.
    Skip(String),
    /// Nothing, and somebody should know.
    Refuse(String),
    /// It is sent as it is.
    Take,
    /// It is written anew and then sent.
    Rewrite(Target),
}

/// Blocks whose samples are in another one that was made of them, and in which. Only what is taken itself counts: a block
/// that is marked for deletion stands for nobody.
pub(super) fn superseded(found: &[(BlockId, Meta)], marked: &BTreeSet<BlockId>) -> BTreeMap<BlockId, BlockId> {
    let own: BTreeMap<BlockId, &Meta> = found.iter().map(|(id, meta)| (*id, meta)).collect();
    // By each block of a scrape they hold, so that not every block is compared with every other.
    let mut by_source: BTreeMap<BlockId, Vec<BlockId>> = BTreeMap::new();
    for (id, meta) in found {
        if let Some(first) = meta.compaction.sources.first().filter(|_| !marked.contains(id)) {
            by_source.entry(*first).or_default().push(*id);
        }
    }
    let mut all = BTreeMap::new();
    for (id, meta) in found.iter().filter(|(id, meta)| !marked.contains(id) && acceptable(meta).is_ok()) {
        let is_part = labels_of(meta).is_some_and(|labels| labels.contains_key(SHARD));
        for parent in meta.compaction.parents.iter().filter(|parent| parent.ulid != *id) {
            // Of a block that was divided, each part is needed, and none of them holds all of it; but a part that was made
            // of smaller parts of the same series holds them.
            let holds_all = meta.min_time <= parent.min_time && parent.max_time <= meta.max_time;
            let is_same = own.get(&parent.ulid).is_some_and(|parent| same_labels(parent, meta));
            if holds_all && (!is_part || is_same) {
                all.insert(parent.ulid, *id);
            }
        }
        // What was merged more than once names its first blocks only.
        for source in meta.compaction.sources.iter().filter(|_| meta.compaction.level > 1) {
            for other in by_source.get(source).into_iter().flatten().filter(|other| *other != id) {
                if own.get(other).is_some_and(|other| is_within(other, meta)) {
                    all.insert(*other, *id);
                }
            }
        }
    }
    all
}

fn labels_of(meta: &Meta) -> Option<&BTreeMap<String, String>> {
    meta.thanos.as_ref().map(|thanos| &thanos.labels)
}

fn same_labels(a: &Meta, b: &Meta) -> bool {
    let none = BTreeMap::new();
    labels_of(a).unwrap_or(&none) == labels_of(b).unwrap_or(&none)
}

/// Whether all a block was made of, another was made of too, and more.
fn is_within(inner: &Meta, outer: &Meta) -> bool {
    let (some, all) = (&inner.compaction.sources, &outer.compaction.sources);
    let in_time = outer.min_time <= inner.min_time && inner.max_time <= outer.max_time;
    in_time && some.len() < all.len() && same_labels(inner, outer) && some.iter().all(|source| all.contains(source))
}

/// The label by which Mimir tells the parts of a divided block apart.
const SHARD: &str = "__compactor_shard_id__";

/// Whether a tenant of Cortex or Mimir is being deleted there.
///
/// # Errors
/// The source cannot be read.
pub(super) async fn tenant_goes(store: &Store) -> Result<bool, String> {
    Ok(store.size("markers/tenant-deletion-mark.json").await.map_err(|e| e.to_string())?.is_some())
}

/// Blocks that are marked for deletion in the source. Thanos puts the mark beside the block; Cortex and Mimir also into a
/// folder for all marks. Marks against compaction say nothing of the samples.
///
/// # Errors
/// The source cannot be read.
pub(super) async fn marked(store: &Store, found: &[(BlockId, Meta)]) -> Result<BTreeSet<BlockId>, String> {
    let listed = store.list_files("markers").await.map_err(|e| e.to_string())?;
    let central = listed.iter().filter_map(|(name, _)| name.strip_suffix("-deletion-mark.json")?.parse().ok());
    let mut all: BTreeSet<BlockId> = central.collect();
    for (id, _) in found {
        let key = format!("{id}/deletion-mark.json");
        if !all.contains(id) && store.size(&key).await.map_err(|e| e.to_string())?.is_some() {
            all.insert(*id);
        }
    }
    Ok(all)
}

/// What is done with a block of the source that is not marked.
///
/// # Errors
/// The source cannot be read.
pub(super) async fn step(store: &Store, meta: &Meta, labels: &Labels) -> Result<Step, String> {
    let id = meta.ulid;
    if let Err(why) = acceptable(meta) {
        return Ok(Step::Refuse(why));
    }
    let key = format!("{id}/tombstones");
    let tombstones = match store.get(&key).await.map_err(|e| e.to_string())? {
        None => Tombstones::default(),
        Some(bytes) => match Tombstones::read(&bytes) {
            Ok(tombstones) => tombstones,
            Err(broken) => return Ok(Step::Refuse(format!("its tombstones are damaged: {broken}"))),
        },
    };
    Ok(choose(meta, labels, !tombstones.is_empty()))
}

fn choose(meta: &Meta, labels: &Labels, has_deleted: bool) -> Step {
    let external = meta.thanos.as_ref().map(|thanos| &thanos.labels).into_iter().flatten();
    // Names with underscores in front are the other system's own: tenant, shard, ingester.
    let wanted = |name: &str| labels.add && !name.starts_with("__") && !labels.drop.iter().any(|drop| drop == name);
    let added: BTreeMap<String, String> =
        external.filter(|(name, _)| wanted(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    if added.is_empty() && !has_deleted {
        return Step::Take;
    }
    let mut why = Vec::new();
    if !added.is_empty() {
        let pairs: Vec<String> = added.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        why.push(format!("with {}", pairs.join(", ")));
    }
    if has_deleted {
        why.push("without what was deleted".to_owned());
    }
    Step::Rewrite(Target { id: name_of(meta.ulid, &added), labels: added, why: why.join(", ") })
}

/// The name of a block that is written anew: the same for the same source and labels, so that it is known again.
fn name_of(source: BlockId, labels: &BTreeMap<String, String>) -> BlockId {
    let own = source.to_string();
    let pairs = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let hash = engram_model::Labels::from_pairs(pairs.chain([("__block__", own.as_str())])).hash128();
    BlockId(source.0 >> 80 << 80 | hash & ((1 << 80) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const A: &str = "01ARZ3NDEKTSV4RRFFQ69G5FA0";
    const B: &str = "01ARZ3NDEKTSV4RRFFQ69G5FB0";

    fn meta(id: &str, (start, end): (i64, i64), parents: &[(&str, i64, i64)], thanos: &str) -> (BlockId, Meta) {
        let parents: Vec<String> = parents
            .iter()
            .map(|(id, start, end)| format!("{{\"ulid\":\"{id}\",\"minTime\":{start},\"maxTime\":{end}}}"))
            .collect();
        let text = format!(
            "{{\"ulid\":\"{id}\",\"minTime\":{start},\"maxTime\":{end},\"version\":1,\"stats\":{{\"numSamples\":3}},\
             \"compaction\":{{\"level\":1,\"sources\":null,\"parents\":[{}]}},\"thanos\":{thanos}}}",
            parents.join(",")
        );
        let meta = Meta::read(Path::new("meta.json"), text.as_bytes()).unwrap();
        (meta.ulid, meta)
    }

    #[test]
    fn parents_of_a_block_that_holds_them_are_not_taken() {
        let (a, b) = (A.parse::<BlockId>().unwrap(), B.parse::<BlockId>().unwrap());
        let made = |thanos: &str, range| {
            superseded(&[meta(A, (0, 10), &[], "null"), meta(B, range, &[(A, 0, 10)], thanos)], &BTreeSet::new())
        };
        assert_eq!(made("null", (0, 20)), BTreeMap::from([(a, b)]));
        for (thanos, range) in [
            ("null", (0, 5)),
            ("{\"downsample\":{\"resolution\":300000}}", (0, 20)),
            ("{\"labels\":{\"__compactor_shard_id__\":\"1_of_4\"}}", (0, 20)),
        ] {
            assert!(made(thanos, range).is_empty(), "{thanos}");
        }
        let both = [meta(A, (0, 10), &[], "null"), meta(B, (0, 20), &[(A, 0, 10)], "null")];
        assert!(superseded(&both, &[b].into()).is_empty(), "what goes there stands for nobody");
        let part = |n: u32| format!("{{\"labels\":{{\"__compactor_shard_id__\":\"{n}_of_4\"}}}}");
        let parts = |n, of| {
            superseded(&[meta(A, (0, 10), &[], &part(n)), meta(B, (0, 20), &[(A, 0, 10)], &part(of))], &BTreeSet::new())
        };
        assert_eq!((parts(1, 1), parts(2, 1)), (BTreeMap::from([(a, b)]), BTreeMap::new()));
    }

    /// A is merged into something that is gone, and that into B: only the names of the first blocks tell.
    #[test]
    fn grandparents_are_known_by_their_sources() {
        let with = |id, range, level, sources: &[&str], thanos: &str| {
            let (id, mut meta) = meta(id, range, &[], thanos);
            meta.compaction.sources = sources.iter().map(|one| one.parse().unwrap()).collect();
            meta.compaction.level = level;
            (id, meta)
        };
        let (a, b) = (A.parse::<BlockId>().unwrap(), B.parse::<BlockId>().unwrap());
        let other = "01ARZ3NDEKTSV4RRFFQ69G5FC0";
        let none = BTreeSet::new();
        let made = |thanos, range| {
            superseded(&[with(A, (0, 10), 1, &[A], "null"), with(B, range, 3, &[A, other], thanos)], &none)
        };
        assert_eq!(made("null", (0, 20)), BTreeMap::from([(a, b)]));
        assert!(made("null", (0, 5)).is_empty());
        assert!(made("{\"labels\":{\"cluster\":\"x\"}}", (0, 20)).is_empty());
        let twins = [with(A, (0, 10), 2, &[A, other], "null"), with(B, (0, 10), 2, &[A, other], "null")];
        assert!(superseded(&twins, &none).is_empty(), "of two that are the same, none goes for the other");
    }

    #[test]
    fn external_labels_are_added_but_not_those_of_the_system() {
        let labels = |add, drop: &[&str]| Labels { add, drop: drop.iter().map(|s| (*s).to_owned()).collect() };
        let cortex = meta(A, (0, 1), &[], "{\"labels\":{\"__org_id__\":\"acme\"}}").1;
        assert_eq!(choose(&cortex, &labels(true, &[]), false), Step::Take);
        let thanos = meta(A, (0, 1), &[], "{\"labels\":{\"cluster\":\"x\",\"replica\":\"a\"}}").1;
        assert_eq!(choose(&thanos, &labels(false, &[]), false), Step::Take);
        let Step::Rewrite(one) = choose(&thanos, &labels(true, &["replica"]), false) else { panic!("not rewritten") };
        assert_eq!(one.labels, BTreeMap::from([("cluster".to_owned(), "x".to_owned())]));
        let Step::Rewrite(both) = choose(&thanos, &labels(true, &[]), true) else { panic!("not rewritten") };
        assert_ne!(one.id, both.id);
        assert_eq!((both.id.0 >> 80, both.labels.len()), (thanos.ulid.0 >> 80, 2));
        let Step::Rewrite(clean) = choose(&cortex, &labels(true, &[]), true) else { panic!("not rewritten") };
        assert_eq!(clean.why, "without what was deleted");
        assert_ne!(clean.id, cortex.ulid);
    }

    #[tokio::test]
    async fn marked_and_downsampled_blocks_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let disk = std::sync::Arc::new(engram_storage::disk::real::RealDisk);
        let store = Store::local(disk, dir.path()).unwrap();
        let raw = meta(A, (0, 1), &[], "null").1;
        assert_eq!(step(&store, &raw, &Labels::default()).await, Ok(Step::Take));
        let coarse = meta(A, (0, 1), &[], "{\"downsample\":{\"resolution\":300000}}").1;
        assert!(
            matches!(step(&store, &coarse, &Labels::default()).await, Ok(Step::Refuse(why)) if why.contains("300000"))
        );
        std::fs::create_dir_all(dir.path().join("markers")).unwrap();
        std::fs::write(dir.path().join(format!("markers/{A}-deletion-mark.json")), "{}").unwrap();
        let (a, b): (BlockId, BlockId) = (A.parse().unwrap(), B.parse().unwrap());
        let found = [(a, raw.clone()), (b, meta(B, (0, 1), &[], "null").1)];
        assert_eq!(marked(&store, &found).await, Ok([a].into()));
        std::fs::create_dir_all(dir.path().join(B)).unwrap();
        std::fs::write(dir.path().join(B).join("deletion-mark.json"), "{}").unwrap();
        std::fs::write(dir.path().join(format!("markers/{B}-no-compact-mark.json")), "{}").unwrap();
        assert_eq!(marked(&store, &found).await, Ok([a, b].into()));
        assert_eq!(tenant_goes(&store).await, Ok(false));
        std::fs::write(dir.path().join("markers/tenant-deletion-mark.json"), "{}").unwrap();
        assert_eq!(tenant_goes(&store).await, Ok(true));
    }
}
