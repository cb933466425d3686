//! One multipart upload: parts in any order, completed once, or aborted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumType, CompletedMultipartUpload, CompletedPart, StorageClass};
use bytes::{Bytes, BytesMut};

use crate::config::ObjectChecksum;
use crate::domain::ObjectKey;
use crate::store::StoreError;
use crate::store::checksum::PartChecksum;
use crate::store::client::{Condition, ObjectFacts, Store};

/// Putting thousands of parts together may take minutes (Amazon S3 API Reference, CompleteMultipartUpload).
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(300);

struct UploadedPart {
    etag: String,
    checksum: Option<PartChecksum>,
    len: u64,
}

/// An upload that has begun. Dropped without [`Self::complete`] or [`Self::abort`] it stays behind, and is found
/// by its id in the run's lease.
pub struct Upload {
    store: Store,
    key: String,
    id: String,
    parts: Mutex<BTreeMap<u32, UploadedPart>>,
}

/// A completed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: String,
    pub version_id: Option<String>,
    pub size_bytes: u64,
    /// `algorithm:hexadecimal`; `None` for stores without object checksums.
    pub checksum: Option<String>,
    /// The same as S3 writes it, for the read-back.
    pub checksum_header: Option<String>,
}

impl Store {
    /// Begins an upload of an object; it costs storage until it is completed or aborted.
    ///
    /// # Errors
    /// [`StoreError`]: S3 refuses, or does not answer.
    pub async fn begin_upload(&self, key: &ObjectKey) -> Result<Upload, StoreError> {
        let path = self.key(key);
        let algorithm = self.config.checksum.sdk();
        let output = self
            .client
            .create_multipart_upload()
            .bucket(&self.config.bucket)
            .key(&path)
            .content_type(key.content_type())
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.config.kms_key_id.clone())
            .set_storage_class(self.config.storage_class.as_deref().map(StorageClass::from))
            .set_checksum_type(algorithm.is_some().then_some(ChecksumType::FullObject))
            .set_checksum_algorithm(algorithm)
            .send()
            .await
            .map_err(self.error("CreateMultipartUpload", &path))?;
        let id = output.upload_id.ok_or_else(|| {
            StoreError::unexpected("CreateMultipartUpload", &self.config.bucket, &path, "the answer names no upload")
        })?;
        Ok(Upload { store: self.clone(), key: path, id, parts: Mutex::default() })
    }

    /// Aborts an upload by its id; one that is gone is no error.
    pub async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let result = self
            .client
            .abort_multipart_upload()
            .bucket(&self.config.bucket)
            .key(key)
            .upload_id(upload_id)
            .customize()
            .config_override(Self::small())
            .send()
            .await
            .map_err(self.error("AbortMultipartUpload", key));
        match result {
            Err(error) if error.is_no_such_upload() => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

impl Upload {
    /// S3's id of the upload.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// With the prefix that the store is configured for.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Bytes in parts that the store has taken.
    pub fn uploaded_bytes(&self) -> u64 {
        self.lock().values().map(|part| part.len).sum()
    }

    /// Sends part `number`, counted from 1, with its checksum where the store takes one.
    ///
    /// # Errors
    /// [`StoreError`]: S3 refuses, or does not answer.
    pub async fn put_part(&self, number: u32, chunks: Vec<Bytes>) -> Result<(), StoreError> {
        let algorithm = self.store.config.checksum;
        let checksum = algorithm.of(&chunks);
        let header = checksum.map(|checksum| algorithm.header(checksum));
        let body = join(chunks);
        let len = body.len() as u64;
        let mut request = self
            .store
            .client
            .upload_part()
            .bucket(&self.store.config.bucket)
            .key(&self.key)
            .upload_id(&self.id)
            .part_number(number as i32)
            .content_length(len as i64)
            .body(ByteStream::from(body));
        request = match algorithm {
            ObjectChecksum::Crc64Nvme => request.set_checksum_crc64_nvme(header),
            ObjectChecksum::Crc32 => request.set_checksum_crc32(header),
            ObjectChecksum::None => request,
        };
        let result = if self.store.config.unsigned_payload() {
            request.customize().disable_payload_signing().send().await
        } else {
            request.send().await
        };
        let output = result.map_err(self.store.error("UploadPart", &self.key))?;
        let etag = output.e_tag.ok_or_else(|| self.unexpected("UploadPart", "the answer has no ETag"))?;
        self.lock().insert(number, UploadedPart { etag, checksum, len });
        Ok(())
    }

    /// Puts the parts together under a condition.
    ///
    /// A lost response is told from a refusal by what then lies under the key.
    ///
    /// # Errors
    /// [`StoreError`]; with `is_precondition_failed` where another object lies there.
    pub async fn complete(&self, condition: Condition<'_>) -> Result<Stored, StoreError> {
        let algorithm = self.store.config.checksum;
        let (parts, size_bytes, checksum) = {
            let parts = self.lock();
            let size_bytes: u64 = parts.values().map(|part| part.len).sum();
            let checksum = algorithm.combine(parts.values().filter_map(|part| part.checksum));
            let completed: Vec<CompletedPart> = parts
                .iter()
                .map(|(&number, part)| {
                    let header = part.checksum.map(|checksum| algorithm.header(checksum));
                    let builder = CompletedPart::builder().part_number(number as i32).e_tag(&part.etag);
                    match algorithm {
                        ObjectChecksum::Crc64Nvme => builder.set_checksum_crc64_nvme(header).build(),
                        ObjectChecksum::Crc32 => builder.set_checksum_crc32(header).build(),
                        ObjectChecksum::None => builder.build(),
                    }
                })
                .collect();
            (completed, size_bytes, checksum)
        };
        let header = checksum.map(|checksum| algorithm.header(checksum));
        let mut request = self
            .store
            .client
            .complete_multipart_upload()
            .bucket(&self.store.config.bucket)
            .key(&self.key)
            .upload_id(&self.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build());
        request = match algorithm {
            ObjectChecksum::Crc64Nvme => request.set_checksum_crc64_nvme(header.clone()),
            ObjectChecksum::Crc32 => request.set_checksum_crc32(header.clone()),
            ObjectChecksum::None => request,
        };
        if algorithm != ObjectChecksum::None {
            request = request.checksum_type(ChecksumType::FullObject).mpu_object_size(size_bytes as i64);
        }
        request = match condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Etag(etag) => request.if_match(etag),
        };
        let stored = |version_id| Stored {
            key: self.key.clone(),
            version_id,
            size_bytes,
            checksum: checksum.map(|checksum| algorithm.label(checksum)),
            checksum_header: header.clone(),
        };
        let sent = request.customize().config_override(Store::attempt_timeout(COMPLETION_TIMEOUT)).send().await;
        match sent.map_err(self.store.error("CompleteMultipartUpload", &self.key)) {
            Ok(output) => Ok(stored(output.version_id)),
            Err(error) => match self.store.head(&self.key).await {
                Ok(Some(facts)) if self.is_ours(&facts, size_bytes, header.as_deref()) => Ok(stored(facts.version_id)),
                _ => Err(error),
            },
        }
    }

    /// Without an object checksum only the size can be compared; the read-back decides then.
    fn is_ours(&self, facts: &ObjectFacts, size_bytes: u64, checksum: Option<&str>) -> bool {
        facts.size_bytes == size_bytes && (checksum.is_none() || facts.checksum.as_deref() == checksum)
    }

    /// Gives up: what has been sent is deleted.
    ///
    /// # Errors
    /// [`StoreError`]; the upload may then still be there.
    pub async fn abort(&self) -> Result<(), StoreError> {
        self.store.abort_upload(&self.key, &self.id).await
    }

    fn unexpected(&self, operation: &'static str, problem: &str) -> StoreError {
        StoreError::unexpected(operation, &self.store.config.bucket, &self.key, problem)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, UploadedPart>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One buffer, because the body has to be there again for a retry; copies only where parts were joined.
fn join(mut chunks: Vec<Bytes>) -> Bytes {
    if chunks.len() == 1 {
        return chunks.swap_remove(0);
    }
    let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    chunks.iter().for_each(|chunk| joined.extend_from_slice(chunk));
    joined.freeze()
}
