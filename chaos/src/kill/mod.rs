//! `kill`: the promise that costs most to break. A node dies in the middle of writes; when it is back, each sample
//! it acknowledged is there, none is there twice, and none that nobody wrote; and the digest it has kept since the first
//! append is that of what it answers.
//!
//! A round: start the node, wait until it is ready, read everything back and compare, let the writers write, kill
//! with SIGKILL at a random moment. After the last kill it is started once more to be read. Each sample has a number
//! of its own, so a value proves who wrote it and when:
//!
//! ```text
//! chaos_numbered{writer="w", series="s"}    time = base + n ms    value = (w · 1000 + s) · 2^32 + n
//! ```
//!
//! A request that was in flight at the kill has an unknown end: its samples may be there. Half of these are sent
//! again after the restart, before anything newer, as a real client would, and must then be there once.

mod book;
mod node;

use crate::args::Kill;
use crate::client::{Client, Ending, Patience, Protocol};
use crate::error::Error;
use crate::wire;
use book::Book;
use engram_model::digest::Digest;
use engram_model::time::{Clock, Millis, Stopwatch};
use node::Node;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// The longest a round may write before the kill, milliseconds; also the shortest.
const KILL_AFTER_MS: std::ops::RangeInclusive<u64> = 50..=1500;
/// Series and writers at most, so that the value's three digits each hold them.
const WRITERS_MAX: usize = 64;
const SERIES_MAX: usize = 1000;

/// Runs all rounds; true when every read agreed with the book.
///
/// # Errors
/// The node did not start, or did not answer a read.
pub(crate) async fn run(args: Kill) -> Result<bool, Error> {
    if !(1..=WRITERS_MAX).contains(&args.writers) || !(1..=SERIES_MAX).contains(&args.series) {
        return Err(Error::Usage(format!("--writers lies in 1..={WRITERS_MAX}, --series in 1..={SERIES_MAX}")));
    }
    let seed = args.seed.unwrap_or_else(|| Clock::real().now().unsigned_abs());
    say(&format!("seed {seed}; {} rounds, {} writers of {} series", args.rounds, args.writers, args.series))?;
    let mut chance = StdRng::seed_from_u64(seed);
    let mut node = Node::new(&args)?;
    let base = Clock::real().now() - 600_000;
    let mut books: Vec<Book> = (0..args.writers).map(|writer| Book::new(writer, args.series, base)).collect();
    let mut findings = 0;
    for round in 1..=args.rounds {
        let client = node.start().await?;
        findings += read_back(&client, &books, round).await?;
        let kill_after = Duration::from_millis(chance.random_range(KILL_AFTER_MS));
        let over = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for book in books.drain(..) {
            let own = StdRng::seed_from_u64(chance.random());
            writers.spawn(write(client.clone(), book, own, over.clone()));
        }
        tokio::time::sleep(kill_after).await;
        node.kill().await?;
        over.store(true, Ordering::Relaxed);
        while let Some(book) = writers.join_next().await {
            books.push(book?);
        }
        books.sort_by_key(|book| book.writer);
        let (acknowledged, unknown) = totals(&books);
        say(&format!(
            "round {round}: killed after {} ms; {acknowledged} samples acknowledged so far, {unknown} unknown",
            kill_after.as_millis()
        ))?;
    }
    let client = node.start().await?;
    findings += read_back(&client, &books, args.rounds + 1).await?;
    node.kill().await?;
    let (acknowledged, unknown) = totals(&books);
    let refused: usize = books.iter().map(|book| book.refused.len()).sum();
    for text in books.iter().flat_map(|book| &book.refused).take(5) {
        say(&format!("REFUSED {text}"))?;
    }
    let held = findings == 0 && refused == 0 && acknowledged > 0;
    if held && !args.keep {
        node.forget();
    } else {
        say(&format!("data and log of the node: {}", node.keep().display()))?;
    }
    say(&format!(
        "{}: {acknowledged} samples acknowledged, {unknown} unknown, {findings} findings, {refused} requests refused{}",
        if held { "passed" } else { "FAILED" },
        if held { String::new() } else { format!("; replay with --seed {seed} --rounds {}", args.rounds) },
    ))?;
    Ok(held)
}

fn totals(books: &[Book]) -> (usize, usize) {
    books.iter().map(Book::totals).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

async fn read_back(client: &Client, books: &[Book], round: u32) -> Result<u64, Error> {
    let watch = Stopwatch::start();
    let mut findings = 0;
    let mut read = Digest::EMPTY;
    for book in books {
        for finding in book.compare(client, &mut read).await? {
            findings += 1;
            if findings <= 20 {
                say(&format!("FINDING before round {round}: {finding}"))?;
            }
        }
    }
    let kept = client.digest(None).await?;
    if kept != read {
        findings += 1;
        say(&format!(
            "FINDING before round {round}: the node's digest is {kept:?}, that of what it answers is {read:?}"
        ))?;
    }
    if findings > 0 || watch.elapsed() > Duration::from_secs(10) {
        say(&format!(
            "before round {round}: {findings} findings; reading took {:.1} s",
            watch.elapsed().as_secs_f64()
        ))?;
    }
    Ok(findings)
}

/// Writes until `over` or until the node no longer answers.
async fn write(client: Client, mut book: Book, mut chance: StdRng, over: Arc<AtomicBool>) -> Book {
    let patience = Patience { retries_max: 0, wait_max: Duration::ZERO };
    let mut encoder = snap::raw::Encoder::new();
    let mut again = book.in_flight().filter(|_| chance.random_bool(0.5));
    while !over.load(Ordering::Relaxed) {
        let number = again.take().unwrap_or_else(|| book.next());
        let body = request(&book, number);
        let body = encoder.compress_vec(&body).unwrap_or_else(|e| unreachable!("a request is small: {e}"));
        let (ending, _) = client.push(Protocol::V1, None, body.into(), patience).await;
        let unreachable =
            matches!(&ending, Ending::Unknown(reason) if !reason.starts_with('5') && !reason.starts_with('4'));
        book.note(number, ending);
        if unreachable {
            break;
        }
        tokio::time::sleep(Duration::from_millis(chance.random_range(0..=4))).await;
    }
    book
}

fn request(book: &Book, number: u32) -> Vec<u8> {
    let mut body = Vec::with_capacity(book.series * 80);
    for series in 0..book.series {
        let value_at = wire::put_series(&mut body, &book.labels(series));
        wire::patch(&mut body, value_at, book.time(number), book.value(series, number));
    }
    body
}

fn say(text: &str) -> Result<(), Error> {
    Ok(writeln!(std::io::stdout(), "kill: {text}")?)
}

/// Milliseconds after the base at which a number stands.
fn offset(number: u32) -> Millis {
    Millis::from(number)
}
