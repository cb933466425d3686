//! An S3 server for the local stack and the tests: one store, in memory or under a directory, that refuses what AWS refuses.
//!
//! The wire format, routing and signatures are the `s3s` crate's. What differs from AWS on purpose: ETags are not MD5 sums
//! (as for objects under SSE-KMS); completing an upload a second time is NoSuchUpload, never a repeated 200; every part of an
//! upload with a checksum algorithm must carry that checksum, also for full-object ones; the digest of an XML request body is not
//! checked; lifecycle rules are stored and not acted upon; uploads in progress do not survive a restart; there are no bucket
//! policies, ACLs or KMS keys, and 409 ConditionalRequestConflict comes only as a programmed fault.

mod access;
mod blob;
mod buckets;
mod checksum;
mod conditions;
mod copy;
mod deletion;
mod disk;
mod exchange;
mod faults;
mod listing;
mod locks;
mod model;
mod multipart;
mod objects;
mod refusal;
mod server;
mod service;
mod store;
#[cfg(test)]
mod tests;
mod thaw;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

pub use access::{ACCOUNT_ID, Permissions};
pub use disk::DiskError;
pub use faults::{Fault, FaultAction, Faults};
pub use server::S3Server;
pub use store::{BucketOptions, ObjectSummary, PendingUpload, RequestRecord, Store};

#[derive(Debug, Clone)]
pub struct S3Options {
    /// Where buckets are kept over restarts; without it everything is in memory.
    pub data_dir: Option<PathBuf>,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
    pub listen: SocketAddr,
    /// For benchmarks: bodies of parts other than part 1 are counted and dropped, and part checksums are believed.
    pub discard_parts: bool,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            data_dir: None,
            access_key: "holdfast".into(),
            secret_key: "holdfast-secret".into(),
            region: "us-east-1".into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            discard_parts: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot open the S3 data directory")]
    Data {
        #[from]
        source: DiskError,
    },
}
