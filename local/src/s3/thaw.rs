//! Archived objects: RestoreObject, and what HeadObject says about its progress.

use http::StatusCode;
use jiff::{Timestamp, ToSpan};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::model::{Thaw, Version};
use super::objects::{caller, find};
use super::store::{Store, bucket_mut, internal};

/// 202 when a restore begins; 200 when a restored copy exists and only its expiry moves.
pub(super) fn restore(
    store: &Store,
    request: S3Request<RestoreObjectInput>,
) -> S3Result<S3Response<RestoreObjectOutput>> {
    let caller = caller(&request);
    let input = request.input;
    let (version, _) = find(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    if !version.is_archived() {
        return Err(s3_error!(InvalidObjectState, "Restore is not allowed for the object's current storage class"));
    }
    let days = input.restore_request.and_then(|restore| restore.days);
    let days = days.filter(|days| *days >= 1).ok_or_else(|| s3_error!(MalformedXML, "Days must be at least 1"))?;
    let now = Timestamp::now();
    let held = version.thaw.filter(|thaw| now < thaw.expires_at);
    if held.is_some_and(|thaw| now < thaw.ready_at) {
        return Err(s3_error!(RestoreAlreadyInProgress, "Object restore is already in progress"));
    }
    let ready_at = match held {
        Some(thaw) => thaw.ready_at,
        None => now.checked_add(store.thaw_delay()).map_err(internal)?,
    };
    let expires_at = ready_at.max(now).checked_add((24 * i64::from(days)).hours()).map_err(internal)?;
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    let thaw = Some(Thaw { ready_at, expires_at });
    store.amend(&input.bucket, bucket, &input.key, &version.id, |version| version.thaw = thaw)?;
    let mut response = S3Response::new(RestoreObjectOutput::default());
    if held.is_none() {
        response.extensions.insert(StatusCode::ACCEPTED);
    }
    Ok(response)
}

/// The value of `x-amz-restore`.
pub(super) fn header(version: &Version) -> Option<String> {
    let now = Timestamp::now();
    let thaw = version.thaw.filter(|thaw| now < thaw.expires_at)?;
    if now < thaw.ready_at {
        return Some("ongoing-request=\"true\"".to_owned());
    }
    let expiry = thaw.expires_at.strftime("%a, %d %b %Y %H:%M:%S GMT");
    Some(format!("ongoing-request=\"false\", expiry-date=\"{expiry}\""))
}
