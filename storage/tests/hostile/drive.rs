//! The driver of hostile inputs: valid ones that are changed a little, by a seed, case after case; each must end soon,
//! take little memory and not panic.
//!
//! Why beside the fuzz targets: those need a compiler that the gate does not have. The entries are the same
//! (`fuzz/entries`). `ENGRAM_HOSTILE_SECONDS=60` goes on for so long instead of a number of cases; `ENGRAM_HOSTILE_SEED`
//! begins elsewhere. What fails prints the seed that brings it back.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engram_model::time::Stopwatch;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: isize) {
    // A thread that ends frees what it held when its counters are gone.
    let _gone = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _gone = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: all calls go to the system's allocator with the arguments they came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps to the contract of `dealloc`, and `at` came from the system.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`. Zero pages are counted although they cost nothing.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: the caller keeps to the contract of `realloc`, and `at` came from the system.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small seeded generator (splitmix64).
pub struct Chance(u64);

impl Chance {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n.max(1) as u64) as usize
    }

    /// Bytes that an entry takes for a list of edits.
    pub fn edits(seed: u64, len: usize) -> Vec<u8> {
        let mut chance = Self(seed);
        let len = 3 + chance.below(len);
        chance.bytes(len)
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.draw().to_le_bytes()[0]).collect()
    }
}

/// One of them, changed in up to eight places; now and then as it is, and now and then bytes that are nothing.
fn changed(seeds: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    if seeds.is_empty() || chance.below(16) == 0 {
        let len = chance.below(200);
        return chance.bytes(len);
    }
    let mut bytes = seeds[chance.below(seeds.len())].clone();
    for _ in 0..chance.below(9) {
        let (at, len) = (chance.below(bytes.len()), 1 + chance.below(16));
        let end = (at + len).min(bytes.len());
        match chance.below(10) {
            0 => bytes.truncate(at),
            1..=3 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            4 | 5 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][chance.below(5)],
            6 => drop(bytes.splice(at..at, chance.bytes(len))),
            // A varint of the greatest length.
            7 => drop(bytes.splice(at..end, [[0xff; 9].as_slice(), &[1]].concat())),
            8 => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len());
                drop(bytes.splice(at..end, other[from..(from + 4 * len).min(other.len())].iter().copied()));
            }
            _ => drop(bytes.drain(at..end)),
        }
    }
    bytes
}

/// Tells the seed when a case panics.
struct Tell(&'static str, u64);

impl Drop for Tell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: again with ENGRAM_HOSTILE_SEED={}", self.0, self.1);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs cases of one entry, each with no more than `bytes_max` of memory and a few seconds.
pub fn drive(name: &'static str, cases: u64, bytes_max: usize, seeds: &[Vec<u8>], entry: impl Fn(&[u8])) {
    // What is made once is no case's memory.
    entry(seeds.first().map_or(&[][..], Vec::as_slice));
    let (first, watch) = (number("ENGRAM_HOSTILE_SEED").unwrap_or(1), Stopwatch::start());
    let seconds = number("ENGRAM_HOSTILE_SECONDS");
    let goes_on = |done: u64| seconds.map_or(done < cases, |seconds| watch.elapsed().as_secs() < seconds);
    let (mut done, mut peak, mut slowest) = (0, 0, 0.0_f64);
    while goes_on(done) {
        let seed = first + done;
        let tell = Tell(name, seed);
        let input = changed(seeds, &mut Chance(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)));
        let (held, one) = (HELD.get(), Stopwatch::start());
        PEAK.set(held);
        entry(&input);
        let (took, used) = (one.elapsed().as_secs_f64(), PEAK.get() - held);
        assert!(used <= bytes_max.cast_signed(), "{} bytes made it take {used} bytes of memory", input.len());
        assert!(took < 20.0, "{} bytes took {took} s", input.len());
        (peak, slowest) = (peak.max(used), slowest.max(took));
        drop(tell);
        done += 1;
    }
    eprintln!(
        "{name}: {done} cases in {:.1} s, at most {peak} bytes and {slowest:.3} s",
        watch.elapsed().as_secs_f64()
    );
}
