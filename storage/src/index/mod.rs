//! The index: from matchers to series.
//!
//! Map: [`postings`] posting lists and their algebra, shared by head and blocks.

pub mod postings;
