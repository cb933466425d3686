//! Object Lock: retention and legal holds, and what they forbid.

use jiff::{Timestamp, ToSpan};
use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::model::{Attributes, Bucket, DefaultRetention, LockMode, Retention, Version, Versioning};
use super::objects::{caller, find, from_wire, wire_time};
use super::store::{Store, bucket, bucket_mut, internal, now};

#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    pub(super) bypass_governance: bool,
}

pub(super) fn allow_removal(version: &Version, removal: Removal) -> S3Result<()> {
    let denied = || s3_error!(AccessDenied, "Access Denied because object protected by object lock.");
    if version.attributes.legal_hold {
        return Err(denied());
    }
    match version.attributes.retention {
        Some(lock) if lock.until > Timestamp::now() => match lock.mode {
            LockMode::Governance if removal.bypass_governance => Ok(()),
            LockMode::Governance | LockMode::Compliance => Err(denied()),
        },
        Some(_) | None => Ok(()),
    }
}

/// The lock that a write asks for in its headers.
pub(super) fn requested(mode: Option<&str>, until: Option<s3s::dto::Timestamp>) -> S3Result<Option<Retention>> {
    match (mode, until) {
        (None, None) => Ok(None),
        (Some(mode), Some(until)) => {
            let mode =
                LockMode::parse(mode).ok_or_else(|| s3_error!(InvalidArgument, "Unknown wormMode directive."))?;
            let until = from_wire(&until)?;
            if until <= Timestamp::now() {
                return Err(s3_error!(InvalidArgument, "The retain until date must be in the future!"));
            }
            Ok(Some(Retention { mode, until }))
        }
        _ => Err(s3_error!(
            InvalidArgument,
            "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied"
        )),
    }
}

/// Applies the bucket's default, and refuses what S3 refuses of a locked write: no lock on the bucket, no digest of the body.
pub(super) fn prepare(bucket: &Bucket, attributes: &mut Attributes, has_digest: bool) -> S3Result<()> {
    let asked = attributes.retention.is_some() || attributes.legal_hold;
    if asked && !bucket.settings.object_lock {
        return Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration"));
    }
    apply_default(bucket, attributes)?;
    if (attributes.retention.is_some() || attributes.legal_hold) && !has_digest {
        return Err(s3_error!(
            InvalidRequest,
            "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"
        ));
    }
    Ok(())
}

pub(super) fn apply_default(bucket: &Bucket, attributes: &mut Attributes) -> S3Result<()> {
    if attributes.retention.is_none()
        && let Some(default) = bucket.settings.default_retention
    {
        let days = i64::from(default.days.unwrap_or(0)) + 365 * i64::from(default.years.unwrap_or(0));
        let until = now().checked_add((24 * days).hours()).map_err(internal)?;
        attributes.retention = Some(Retention { mode: default.mode, until });
    }
    Ok(())
}

pub(super) fn put_configuration(store: &Store, input: PutObjectLockConfigurationInput) -> S3Result<()> {
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    if bucket.settings.versioning != Versioning::Enabled {
        return Err(s3_error!(
            InvalidBucketState,
            "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration"
        ));
    }
    let rule = input.object_lock_configuration.and_then(|configuration| configuration.rule);
    let default = match rule.and_then(|rule| rule.default_retention) {
        None => None,
        Some(default) => {
            let mode = default.mode.as_ref().and_then(|mode| LockMode::parse(mode.as_str()));
            let mode = mode.ok_or_else(|| s3_error!(MalformedXML))?;
            if default.days.is_some() == default.years.is_some() {
                return Err(s3_error!(MalformedXML, "Exactly one of Days and Years must be given"));
            }
            Some(DefaultRetention { mode, days: default.days, years: default.years })
        }
    };
    let mut settings = bucket.settings.clone();
    settings.object_lock = true;
    settings.default_retention = default;
    super::buckets::save(store, &input.bucket, bucket, settings)
}

pub(super) fn get_configuration(store: &Store, name: &str) -> S3Result<GetObjectLockConfigurationOutput> {
    let state = store.lock();
    let settings = &bucket(&state, name)?.settings;
    if !settings.object_lock {
        return Err(s3_error!(
            ObjectLockConfigurationNotFoundError,
            "Object Lock configuration does not exist for this bucket"
        ));
    }
    let rule = settings.default_retention.map(|default| ObjectLockRule {
        default_retention: Some(s3s::dto::DefaultRetention {
            days: default.days,
            mode: Some(ObjectLockRetentionMode::from_static(default.mode.name())),
            years: default.years,
        }),
    });
    let enabled = Some(ObjectLockEnabled::from_static("Enabled"));
    let object_lock_configuration = Some(ObjectLockConfiguration { object_lock_enabled: enabled, rule });
    Ok(GetObjectLockConfigurationOutput { object_lock_configuration })
}

/// GOVERNANCE may be lengthened by anyone and weakened with the bypass; COMPLIANCE may only be lengthened.
pub(super) fn put_retention(store: &Store, request: S3Request<PutObjectRetentionInput>) -> S3Result<()> {
    let caller = caller(&request);
    let input = request.input;
    let wanted = input.retention.unwrap_or_default();
    let wanted = match (wanted.mode, wanted.retain_until_date) {
        (None, None) => None,
        (mode, until) => requested(mode.as_ref().map(ObjectLockRetentionMode::as_str), until)?,
    };
    let (version, _) =
        locked_version(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    if let Some(held) = version.attributes.retention.filter(|held| held.until > Timestamp::now()) {
        let lengthens = wanted.is_some_and(|wanted| wanted.until >= held.until);
        let keeps_mode = wanted.is_some_and(|wanted| wanted.mode == held.mode || held.mode == LockMode::Governance);
        let bypassed = held.mode == LockMode::Governance && input.bypass_governance_retention.unwrap_or(false);
        if !(lengthens && keeps_mode || bypassed) {
            return Err(s3_error!(AccessDenied, "Access Denied because object protected by object lock."));
        }
    }
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    store.amend(&input.bucket, bucket, &input.key, &version.id, |version| version.attributes.retention = wanted)
}

pub(super) fn get_retention(
    store: &Store,
    request: &S3Request<GetObjectRetentionInput>,
) -> S3Result<GetObjectRetentionOutput> {
    let (caller, input) = (caller(request), &request.input);
    let (version, _) =
        locked_version(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    let Some(held) = version.attributes.retention else { return Err(no_lock()) };
    let retention = Some(ObjectLockRetention {
        mode: Some(ObjectLockRetentionMode::from_static(held.mode.name())),
        retain_until_date: Some(wire_time(held.until)),
    });
    Ok(GetObjectRetentionOutput { retention })
}

pub(super) fn put_legal_hold(store: &Store, request: S3Request<PutObjectLegalHoldInput>) -> S3Result<()> {
    let caller = caller(&request);
    let input = request.input;
    let on = match input.legal_hold.and_then(|hold| hold.status).as_ref().map(ObjectLockLegalHoldStatus::as_str) {
        Some("ON") => true,
        Some("OFF") => false,
        _ => return Err(s3_error!(MalformedXML)),
    };
    let (version, _) =
        locked_version(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    store.amend(&input.bucket, bucket, &input.key, &version.id, |version| version.attributes.legal_hold = on)
}

pub(super) fn get_legal_hold(
    store: &Store,
    request: &S3Request<GetObjectLegalHoldInput>,
) -> S3Result<GetObjectLegalHoldOutput> {
    let (caller, input) = (caller(request), &request.input);
    let (version, _) =
        locked_version(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    let status = if version.attributes.legal_hold { "ON" } else { "OFF" };
    let status = Some(ObjectLockLegalHoldStatus::from_static(status));
    Ok(GetObjectLegalHoldOutput { legal_hold: Some(ObjectLockLegalHold { status }) })
}

fn locked_version(
    store: &Store,
    caller: Option<&str>,
    name: &str,
    key: &str,
    version_id: Option<&str>,
) -> S3Result<(std::sync::Arc<Version>, Versioning)> {
    if !bucket(&store.lock(), name)?.settings.object_lock {
        return Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration"));
    }
    find(store, caller, name, key, version_id)
}

fn no_lock() -> s3s::S3Error {
    s3_error!(NoSuchObjectLockConfiguration, "The specified object does not have a ObjectLock configuration")
}
