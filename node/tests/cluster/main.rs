//! Goal: nodes are one cluster: they find each other, hold everything three times, and lose nothing, answer nothing wrong
//! and refuse nothing while nodes and zones are killed under load, come back, are replaced, join, leave, or do not hear
//! each other. Method: real processes, killed with SIGKILL; writers and readers at those that stay, who must never fail;
//! at the end every replica's digest against the others', and what is read against what was acknowledged.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "test"
)]

#[path = "../support/mod.rs"]
mod support;

mod harness;
mod load;
mod network;
mod nodes;
mod partitions;
mod pushdown;
mod recovers;
mod restarts;
mod scale;
mod secure;
mod zones;
