//! PromQL: text → tree → plan → values. Pure: asks for series through [`port`], knows no storage and no network.

pub mod parse;
pub mod port;
