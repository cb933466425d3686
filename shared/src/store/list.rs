//! Listing: for functions that may list, and under the prefixes they may list only.

use crate::domain::KeyPrefix;
use crate::store::{Store, StoreError};

/// A listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As it is in the bucket, the deployment's prefix included.
    pub key: String,
    pub size_bytes: u64,
}

/// One level of a listing, in the order of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    pub objects: Vec<Listed>,
    /// What has further levels, each ending with a slash.
    pub folders: Vec<String>,
}

impl Store {
    /// The same bucket seen from another prefix.
    #[must_use]
    pub fn at_prefix(&self, prefix: KeyPrefix) -> Self {
        let mut store = self.clone();
        store.config.prefix = prefix;
        store
    }

    /// What lies directly under `path`, which begins after the deployment's prefix and ends with a slash.
    pub async fn list_level(&self, path: &str) -> Result<Listing, StoreError> {
        let prefix = format!("{}{path}", self.config.prefix.as_str());
        let mut listing = Listing::default();
        let mut continuation = None;
        loop {
            let request = self.client.list_objects_v2().bucket(&self.config.bucket).prefix(&prefix).delimiter("/");
            let request = request.set_continuation_token(continuation.take());
            let sent = request.customize().config_override(Self::small()).send().await;
            let page = sent.map_err(self.error("ListObjectsV2", &prefix))?;
            listing.folders.extend(page.common_prefixes().iter().filter_map(|folder| folder.prefix.clone()));
            listing.objects.extend(page.contents().iter().filter_map(|object| {
                let size_bytes = object.size.unwrap_or_default().unsigned_abs();
                object.key.clone().map(|key| Listed { key, size_bytes })
            }));
            match page.next_continuation_token {
                Some(token) if page.is_truncated == Some(true) => continuation = Some(token),
                _ => return Ok(listing),
            }
        }
    }
}
