//! Everything under a prefix: objects with what tells one version from another, and uploads under way.

use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use jiff::Timestamp;

use crate::plan::retention::sweep::{Found, PendingUpload};
use crate::store::{Store, StoreError};

impl Store {
    /// Every object whose key begins with `prefix` (a whole key, the deployment's prefix included), in the keys' order.
    pub async fn inventory(&self, prefix: &str) -> Result<Vec<Found>, StoreError> {
        const OPERATION: &str = "ListObjectsV2";
        let mut found = Vec::new();
        let mut continuation = None;
        loop {
            let request = self.client.list_objects_v2().bucket(&self.config.bucket).prefix(prefix);
            // Encoded, because a key may hold what XML cannot.
            let request = request.encoding_type(EncodingType::Url).set_continuation_token(continuation.take());
            let sent = request.customize().config_override(Self::small()).send().await;
            let page = sent.map_err(self.error(OPERATION, prefix))?;
            for object in page.contents() {
                found.push(Found {
                    key: self.decoded(OPERATION, prefix, object.key.as_deref())?,
                    size_bytes: object.size.unwrap_or_default().unsigned_abs(),
                    etag: object.e_tag.clone().unwrap_or_default(),
                    last_modified: self.moment(OPERATION, prefix, object.last_modified)?,
                });
            }
            match page.next_continuation_token {
                Some(token) if page.is_truncated == Some(true) => continuation = Some(token),
                _ => return Ok(found),
            }
        }
    }

    /// Every upload under `prefix` that was neither completed nor aborted.
    pub async fn pending_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StoreError> {
        const OPERATION: &str = "ListMultipartUploads";
        let mut found = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let request = self.client.list_multipart_uploads().bucket(&self.config.bucket).prefix(prefix);
            let request = request.encoding_type(EncodingType::Url);
            let request = request.set_key_marker(key_marker.take()).set_upload_id_marker(id_marker.take());
            let sent = request.customize().config_override(Self::small()).send().await;
            let page = sent.map_err(self.error(OPERATION, prefix))?;
            for upload in page.uploads() {
                found.push(PendingUpload {
                    key: self.decoded(OPERATION, prefix, upload.key.as_deref())?,
                    upload_id: upload.upload_id.clone().unwrap_or_default(),
                    initiated: self.moment(OPERATION, prefix, upload.initiated)?,
                });
            }
            if page.is_truncated != Some(true) || page.next_key_marker.is_none() {
                return Ok(found);
            }
            key_marker = Some(self.decoded(OPERATION, prefix, page.next_key_marker.as_deref())?);
            id_marker = page.next_upload_id_marker;
        }
    }

    /// A small object that has been listed, and its ETag; `None` where it is gone since.
    pub async fn read_listed(&self, key: &str) -> Result<Option<(Bytes, String)>, StoreError> {
        let request = self.client.get_object().bucket(&self.config.bucket).key(key);
        let sent = request.customize().config_override(Self::small()).send().await;
        let output = match sent.map_err(self.error("GetObject", key)) {
            Ok(output) => output,
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error),
        };
        let etag = output.e_tag.unwrap_or_default();
        let body = output.body.collect().await.map_err(|error| {
            StoreError::broken_off("GetObject", &self.config.bucket, key, crate::fault::chain(&error))
        })?;
        Ok(Some((body.into_bytes(), etag)))
    }

    fn decoded(&self, operation: &'static str, prefix: &str, key: Option<&str>) -> Result<String, StoreError> {
        let spaces = key.unwrap_or_default().replace('+', " ");
        let decoded = percent_encoding::percent_decode_str(&spaces).decode_utf8().map(std::borrow::Cow::into_owned);
        decoded.map_err(|_| {
            StoreError::unexpected(operation, &self.config.bucket, prefix, "a listed key is not valid UTF-8")
        })
    }

    /// A time that is not there would make everything old, or nothing.
    fn moment(
        &self,
        operation: &'static str,
        prefix: &str,
        time: Option<aws_sdk_s3::primitives::DateTime>,
    ) -> Result<Timestamp, StoreError> {
        time.and_then(|time| Timestamp::from_second(time.secs()).ok()).ok_or_else(|| {
            StoreError::unexpected(operation, &self.config.bucket, prefix, "a listed object has no usable time")
        })
    }
}
