//! Goal: when a partition's write is answered, and how. Method: replicas that answer as told, on a clock that is moved.

use super::*;

/// What a replica does with an append.
#[derive(Clone)]
enum Does {
    /// Stores so many samples and refuses so many.
    Stores(u64, u64),
    Fails(Error),
    /// Stores a sample after so many seconds.
    Slow(u64),
    /// Is silent for so many seconds, then fails.
    Silent(u64),
}

/// Asks node `i` to do `does[i]`; the first `current` are the set that is, the others the one that will be.
async fn ask(does: &[Does], current: usize) -> (Result<Appended, Error>, u64) {
    ask_until(does, current, 0).await
}

/// The same where a newer set becomes known after so many seconds.
async fn ask_until(does: &[Does], current: usize, newer_s: u64) -> (Result<Appended, Error>, u64) {
    let ids: Vec<NodeId> = (0..does.len() as u64).map(NodeId).collect();
    let next = (current < ids.len()).then(|| &ids[current..]);
    let sets = Sets::new(&ids[..current], next);
    let began = Instant::now();
    let append = |node: NodeId| {
        let does = does[usize::try_from(node.0).unwrap()].clone();
        async move {
            match does {
                Does::Stores(samples, refused) => {
                    let mut done = Appended { samples, ..Appended::default() };
                    done.refused.add("sample-too-old", false, refused, || "old".into());
                    Ok(done)
                }
                Does::Fails(error) => Err(error),
                Does::Slow(seconds) => {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    Ok(Appended { samples: 1, ..Appended::default() })
                }
                Does::Silent(seconds) => {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    Err(Error::new(Class::Timeout, "silent"))
                }
            }
        }
    };
    let newer = tokio::time::sleep(Duration::from_secs(newer_s));
    let done = quorum(PartitionId(0), &sets, newer, append).await;
    (done, began.elapsed().as_secs())
}

fn gone() -> Does {
    Does::Fails(Error::unavailable("gone"))
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_dead_replica_is_not_waited_for() {
    for third in [Does::Silent(10), gone()] {
        let (done, took) = ask(&[third, Does::Stores(5, 0), Does::Stores(5, 0)], 3).await;
        assert_eq!((done.unwrap().samples, took), (5, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_the_answer_comes_at_once() {
    let (done, took) = ask(&[gone(), Does::Silent(10), gone()], 3).await;
    let error = done.unwrap_err();
    assert_eq!((error.class, took), (Class::Unavailable, 0));
    assert!(error.message.contains("no majority of its 3 replicas: gone; gone"), "{error}");
    // Whose outcome is unknown makes the whole unknown.
    let (done, took) = ask(&[Does::Silent(1), gone(), Does::Stores(1, 0)], 3).await;
    assert_eq!((done.unwrap_err().class, took), (Class::Timeout, 1));
}

#[tokio::test(start_paused = true)]
async fn while_sets_change_each_needs_its_majority() {
    let good = || Does::Stores(1, 0);
    assert!(ask(&[good(), gone(), good(), good(), good(), gone()], 3).await.0.is_ok());
    assert!(ask(&[good(), good(), good(), good(), gone(), gone()], 3).await.0.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_some_replica_of_the_majority_refused_is_not_promised() {
    let (done, _) = ask(&[Does::Stores(4, 0), Does::Stores(3, 1), Does::Silent(10)], 3).await;
    assert_eq!(done.map(|d| (d.samples, d.refused.count)).unwrap(), (3, 1));
}

#[test]
fn refusals_of_different_samples_add_up_and_those_of_the_same_do_not() {
    let done = |samples, refused, text: &str| {
        let mut done = Appended { samples, ..Appended::default() };
        done.refused.add("per_user_series_limit", true, refused, || text.into());
        done
    };
    let both = |a: Appended, b: Appended| {
        let done = of_both(a, &b);
        (done.samples, done.refused.count, done.refused.by_reason.iter().map(|(_, n)| n).sum::<u64>())
    };
    assert_eq!(both(done(1, 1, "s1"), done(1, 1, "s1")), (1, 1, 1));
    assert_eq!(both(done(1, 1, "s1"), done(1, 1, "s2")), (0, 2, 2), "each has stored what the other refused");
    assert_eq!(both(done(2, 1, "s1"), done(0, 3, "s2")), (0, 3, 3), "no more than there were");
    assert_eq!(both(done(3, 0, ""), done(2, 1, "s1")), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn one_replica_alone_says_why_in_its_own_words_and_a_newer_ring_is_told_at_once() {
    let full = Error::unavailable("the disk is full");
    assert_eq!(ask(&[Does::Fails(full.clone())], 1).await.0.unwrap_err(), full);
    let stale = Error { stage: Stage::Stale, ..Error::unavailable("newer") };
    let (done, took) = ask(&[Does::Silent(10), Does::Fails(stale.clone()), Does::Silent(10)], 3).await;
    assert_eq!((done.unwrap_err(), took), (stale, 0));
}

#[tokio::test(start_paused = true)]
async fn a_majority_of_a_set_counts_although_one_of_it_knows_a_newer_one() {
    let stale = || Does::Fails(Error { stage: Stage::Stale, ..Error::unavailable("newer") });
    let good = || Does::Stores(1, 0);
    assert!(ask(&[stale(), good(), good()], 3).await.0.is_ok());
    // It comes while this node does not know the newer set, and is not waited for after that.
    let (done, took) = ask_until(&[stale(), Does::Slow(1), Does::Slow(2)], 3, 5).await;
    assert_eq!((done.unwrap().samples, took), (1, 2));
    let (done, took) = ask_until(&[stale(), Does::Slow(1), Does::Silent(60)], 3, 5).await;
    assert_eq!((done.unwrap_err().stage, took), (Stage::Stale, 5));
    // Of each set.
    let both = [good(), good(), stale(), good(), stale(), Does::Slow(1)];
    assert_eq!(ask_until(&both, 3, 5).await.1, 1);
    let (done, took) = ask_until(&[good(), good(), stale(), good(), stale(), stale()], 3, 5).await;
    assert_eq!((done.unwrap_err().stage, took), (Stage::Stale, 0), "the newer set may take what this one cannot");
}
