//! `restore-trigger`: restores a backup, guarded, in parallel, and proved.

pub mod engine;
