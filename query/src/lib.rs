//! PromQL: text → tree → plan → values. Pure: asks for series through [`port`], knows no storage and no network.

pub mod engine;
pub mod error;
pub mod fragment;
pub mod functions;
pub mod histogram;
pub mod parse;
pub mod plan;
pub mod port;
pub mod value;
