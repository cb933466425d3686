//! Deleting: by delete marker only. No version of anything is ever deleted here.

use aws_sdk_s3::types::{Delete, ObjectIdentifier, ObjectLockLegalHoldStatus};
use jiff::Timestamp;

use crate::store::{Store, StoreError};

/// Keys of one DeleteObjects request (Amazon S3 API Reference, DeleteObjects).
const BATCH: usize = 1_000;

/// What a conditional deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is no longer there.
    Removed,
    /// Something else lies there now; it was left alone.
    Changed,
}

/// What of a folder could not be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRemoved {
    pub key: String,
    pub problem: String,
}

impl Store {
    /// Deletes an object, in a versioned bucket by putting a marker over its versions; with an ETag, only if it is still
    /// the current one. One that is gone is no error.
    pub async fn remove(&self, key: &str, etag: Option<&str>) -> Result<Removal, StoreError> {
        let request = self.client.delete_object().bucket(&self.config.bucket).key(key);
        let request = request.set_if_match(etag.map(str::to_owned));
        let sent = request.customize().config_override(Self::small()).send().await;
        match sent.map_err(self.error("DeleteObject", key)) {
            Ok(_) => Ok(Removal::Removed),
            Err(error) if error.is_absent() => Ok(Removal::Removed),
            Err(error) if etag.is_some() && (error.is_precondition_failed() || error.is_conflict()) => {
                Ok(Removal::Changed)
            }
            Err(error) => Err(error),
        }
    }

    /// What Object Lock holds an object by, and until when; `None` where nothing does, or the caller may not know.
    ///
    /// A delete marker goes over a locked object as over any other: who asks before keeps it in sight.
    pub async fn locked_by(&self, key: &str) -> Result<Option<String>, StoreError> {
        // A store that does not have these calls locks nothing.
        let unknown = |error: &StoreError| {
            error.is_absent_or_hidden()
                || matches!(error.status, Some(405 | 501))
                || matches!(
                    error.code.as_deref(),
                    Some(
                        "InvalidRequest"
                            | "NoSuchObjectLockConfiguration"
                            | "ObjectLockConfigurationNotFoundError"
                            | "NotImplemented"
                            | "MethodNotAllowed"
                    )
                )
        };
        let request = self.client.get_object_legal_hold().bucket(&self.config.bucket).key(key);
        let sent = request.customize().config_override(Self::small()).send().await;
        match sent.map_err(self.error("GetObjectLegalHold", key)) {
            Ok(output) => {
                let status = output.legal_hold.and_then(|hold| hold.status);
                if status == Some(ObjectLockLegalHoldStatus::On) {
                    return Ok(Some("a legal hold".to_owned()));
                }
            }
            // A bucket without Object Lock, an object without a hold.
            Err(error) if unknown(&error) => {}
            Err(error) => return Err(error),
        }
        let request = self.client.get_object_retention().bucket(&self.config.bucket).key(key);
        let sent = request.customize().config_override(Self::small()).send().await;
        match sent.map_err(self.error("GetObjectRetention", key)) {
            Ok(output) => {
                let until = output.retention.and_then(|lock| lock.retain_until_date);
                let until = until.and_then(|until| Timestamp::from_second(until.secs()).ok());
                Ok(until.filter(|until| *until > Timestamp::now()).map(|until| format!("Object Lock until {until}")))
            }
            Err(error) if unknown(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes many objects; what fails is listed, and the rest is deleted.
    pub async fn remove_all(&self, keys: &[String]) -> Result<Vec<NotRemoved>, StoreError> {
        let mut failed = Vec::new();
        for batch in keys.chunks(BATCH) {
            let about = batch.first().map(String::as_str).unwrap_or_default();
            let unexpected = |error: aws_sdk_s3::error::BuildError| {
                StoreError::unexpected("DeleteObjects", &self.config.bucket, about, error.to_string())
            };
            let objects = batch.iter().map(|key| ObjectIdentifier::builder().key(key).build());
            let objects: Vec<ObjectIdentifier> = objects.collect::<Result<_, _>>().map_err(unexpected)?;
            let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(unexpected)?;
            let request = self.client.delete_objects().bucket(&self.config.bucket).delete(delete);
            let output = request.send().await.map_err(self.error("DeleteObjects", about))?;
            failed.extend(output.errors().iter().map(|error| NotRemoved {
                key: error.key.clone().unwrap_or_default(),
                problem: error.code.clone().or_else(|| error.message.clone()).unwrap_or_default(),
            }));
        }
        Ok(failed)
    }
}
