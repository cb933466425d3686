//! Pure decisions: values and `now` in, a plan out. No clock, no I/O, no SDK type.

pub mod clearance;
pub mod export;
pub mod rebuild;
pub mod retention;
pub mod snapshot_export;
