//! Archived objects: whether one can be read, and asking for a copy that can.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{GlacierJobParameters, RestoreRequest, Tier as SdkTier};
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{SignedDuration, Timestamp};

use crate::plan::clearance::Tier;
use crate::plan::clearance::thaw::{Approval, Archive, COPY_DAYS};
use crate::store::{Store, StoreError};

/// A thawed copy that is gone sooner is not begun to be read: S3 is asked to keep it longer first.
const COPY_LASTS: SignedDuration = SignedDuration::from_hours(2);
const INTELLIGENT_TIERING: &str = "INTELLIGENT_TIERING";

/// An object as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub storage_class: String,
    pub readiness: Readiness,
}

/// Whether an object can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Readable,
    Archived(Archive),
    /// A copy is on its way.
    Thawing(Archive),
}

impl Stored {
    /// From what HeadObject says (Amazon S3 API Reference, HeadObject: `x-amz-storage-class`,
    /// `x-amz-archive-status`, `x-amz-restore`).
    fn of(class: Option<&str>, archive_status: Option<&str>, restore: Option<&str>, now: Timestamp) -> Self {
        let storage_class = class.unwrap_or("STANDARD").to_owned();
        let archive = match (storage_class.as_str(), archive_status) {
            ("GLACIER", _) | (INTELLIGENT_TIERING, Some("ARCHIVE_ACCESS")) => Some(Archive::Flexible),
            ("DEEP_ARCHIVE", _) | (INTELLIGENT_TIERING, Some("DEEP_ARCHIVE_ACCESS")) => Some(Archive::Deep),
            _ => None,
        };
        let readiness = match (archive, restore) {
            (None, _) => Readiness::Readable,
            (Some(archive), Some(told)) if told.contains("ongoing-request=\"true\"") => Readiness::Thawing(archive),
            (Some(archive), Some(told)) => match copy_expires(told) {
                Some(expires) if expires > now + COPY_LASTS => Readiness::Readable,
                _ => Readiness::Archived(archive),
            },
            (Some(archive), None) => Readiness::Archived(archive),
        };
        Self { storage_class, readiness }
    }

    pub fn archive(&self) -> Option<Archive> {
        match self.readiness {
            Readiness::Readable => None,
            Readiness::Archived(archive) | Readiness::Thawing(archive) => Some(archive),
        }
    }
}

/// Of `ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"`.
fn copy_expires(told: &str) -> Option<Timestamp> {
    let (_, rest) = told.split_once("expiry-date=\"")?;
    DateTimeParser::new().parse_timestamp(rest.split('"').next()?).ok()
}

impl Store {
    /// How an object is stored; `None` where there is none, or the caller may not know.
    pub async fn stored(&self, key: &str, version_id: Option<&str>) -> Result<Option<Stored>, StoreError> {
        let request = self.client.head_object().bucket(&self.config.bucket).key(key);
        let request = request.set_version_id(version_id.map(str::to_owned));
        let sent = request.customize().config_override(Self::small()).send().await;
        match sent.map_err(self.error("HeadObject", key)) {
            Ok(output) => Ok(Some(stored(&output))),
            Err(error) if error.is_absent_or_hidden() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for a copy that can be read. One that is on its way already is no error.
    pub async fn thaw(
        &self,
        approval: &Approval,
        stored: &Stored,
        key: &str,
        version_id: Option<&str>,
    ) -> Result<(), StoreError> {
        let tier = match approval.options().tier {
            Tier::Expedited => SdkTier::Expedited,
            Tier::Standard => SdkTier::Standard,
            Tier::Bulk => SdkTier::Bulk,
        };
        let unexpected = |error: aws_sdk_s3::error::BuildError| {
            StoreError::unexpected("RestoreObject", &self.config.bucket, key, error.to_string())
        };
        let job = GlacierJobParameters::builder().tier(tier).build().map_err(unexpected)?;
        // Out of INTELLIGENT_TIERING's archives the object itself comes back, to stay.
        let days = (stored.storage_class != INTELLIGENT_TIERING).then_some(COPY_DAYS);
        let wanted = RestoreRequest::builder().set_days(days).glacier_job_parameters(job).build();
        let request = self.client.restore_object().bucket(&self.config.bucket).key(key).restore_request(wanted);
        let request = request.set_version_id(version_id.map(str::to_owned));
        let sent = request.customize().config_override(Self::small()).send().await;
        match sent.map_err(self.error("RestoreObject", key)) {
            Err(error) if error.code.as_deref() != Some("RestoreAlreadyInProgress") => Err(error),
            _ => Ok(()),
        }
    }
}

fn stored(output: &HeadObjectOutput) -> Stored {
    let class = output.storage_class().map(aws_sdk_s3::types::StorageClass::as_str);
    let status = output.archive_status().map(aws_sdk_s3::types::ArchiveStatus::as_str);
    Stored::of(class, status, output.restore(), Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_head_says_decides_whether_an_object_can_be_read() {
        let now: Timestamp = "2025-06-21T14:00:00Z".parse().unwrap();
        let ongoing = Some("ongoing-request=\"true\"");
        let thawed = Some("ongoing-request=\"false\", expiry-date=\"Tue, 24 Jun 2025 00:00:00 GMT\"");
        let ending = Some("ongoing-request=\"false\", expiry-date=\"Sat, 21 Jun 2025 15:00:00 GMT\"");
        use Readiness::{Archived, Readable, Thawing};
        for (class, status, restore, expected) in [
            (None, None, None, Readable),
            (Some("STANDARD_IA"), None, None, Readable),
            (Some("GLACIER_IR"), None, None, Readable),
            (Some("INTELLIGENT_TIERING"), None, None, Readable),
            (Some("INTELLIGENT_TIERING"), Some("ARCHIVE_ACCESS"), None, Archived(Archive::Flexible)),
            (Some("INTELLIGENT_TIERING"), Some("DEEP_ARCHIVE_ACCESS"), ongoing, Thawing(Archive::Deep)),
            (Some("GLACIER"), None, None, Archived(Archive::Flexible)),
            (Some("GLACIER"), None, ongoing, Thawing(Archive::Flexible)),
            (Some("GLACIER"), None, thawed, Readable),
            (Some("DEEP_ARCHIVE"), None, None, Archived(Archive::Deep)),
            (Some("DEEP_ARCHIVE"), None, thawed, Readable),
            // Gone before the restore would be done.
            (Some("DEEP_ARCHIVE"), None, ending, Archived(Archive::Deep)),
            (Some("GLACIER"), None, Some("ongoing-request=\"false\""), Archived(Archive::Flexible)),
        ] {
            let stored = Stored::of(class, status, restore, now);
            assert_eq!(stored.readiness, expected, "{class:?} {status:?} {restore:?}");
        }
    }
}
