//! The bucket: small control objects with conditional writes, and large artifacts by multipart upload.

pub mod checksum;
pub mod claim;
pub mod client;
pub mod error;
pub mod inventory;
pub mod lease;
pub mod list;
pub mod read;
pub mod remove;
pub mod thaw;
pub mod upload;

pub use client::{ObjectFacts, PutOutcome, Store};
pub use error::StoreError;
