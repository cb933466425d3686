//! Preconditions: `If-Match` and its relatives, for reads and for writes.

use jiff::Timestamp;
use s3s::dto::ETagCondition;
use s3s::{S3Error, S3Result, s3_error};

use super::model::Version;

/// `If-Match` / `If-None-Match` of a write, judged against the current version under the store's lock.
pub(super) fn check_write(
    current: Option<&Version>,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    if let Some(condition) = if_match {
        let Some(current) = current else {
            return Err(s3_error!(NoSuchKey, "The specified key does not exist."));
        };
        if !fits(condition, &current.etag) {
            return Err(failed("If-Match"));
        }
    }
    match if_none_match {
        None => Ok(()),
        Some(ETagCondition::Any) if current.is_some() => Err(failed("If-None-Match")),
        Some(ETagCondition::Any) => Ok(()),
        Some(ETagCondition::ETag(_)) => {
            Err(s3_error!(NotImplemented, "A header you provided implies functionality that is not implemented"))
        }
    }
}

/// The four headers of a read.
#[derive(Default)]
pub(super) struct ReadConditions<'a> {
    pub(super) if_match: Option<&'a ETagCondition>,
    pub(super) if_none_match: Option<&'a ETagCondition>,
    pub(super) if_modified_since: Option<Timestamp>,
    pub(super) if_unmodified_since: Option<Timestamp>,
}

impl ReadConditions<'_> {
    pub(super) fn check(&self, version: &Version) -> S3Result<()> {
        match self.if_match {
            Some(condition) if !fits(condition, &version.etag) => return Err(failed("If-Match")),
            // A matching If-Match outranks If-Unmodified-Since.
            Some(_) => {}
            None => {
                if self.if_unmodified_since.is_some_and(|since| version.last_modified > since) {
                    return Err(failed("If-Unmodified-Since"));
                }
            }
        }
        match self.if_none_match {
            Some(condition) if fits(condition, &version.etag) => Err(s3_error!(NotModified, "Not Modified")),
            Some(_) => Ok(()),
            None if self.if_modified_since.is_some_and(|since| version.last_modified <= since) => {
                Err(s3_error!(NotModified, "Not Modified"))
            }
            None => Ok(()),
        }
    }
}

/// The conditions on the source of a copy fail as 412, never as 304.
pub(super) fn check_source(
    version: &Version,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    if if_match.is_some_and(|condition| !fits(condition, &version.etag)) {
        return Err(failed("x-amz-copy-source-If-Match"));
    }
    if if_none_match.is_some_and(|condition| fits(condition, &version.etag)) {
        return Err(failed("x-amz-copy-source-If-None-Match"));
    }
    Ok(())
}

pub(super) fn fits(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(wanted) => wanted.value() == etag,
    }
}

fn failed(condition: &str) -> S3Error {
    s3_error!(
        PreconditionFailed,
        "At least one of the pre-conditions you specified did not hold (Condition: {condition})"
    )
}
