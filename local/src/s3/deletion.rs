//! Deleting: markers in versioned buckets, and versions for good where no lock forbids it.

use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::blob::Content;
use super::conditions::{check_write, fits};
use super::locks::{self, Removal};
use super::model::{Attributes, Bucket, NULL_VERSION, Version, Versioning};
use super::objects::caller;
use super::store::{Store, bucket_mut, now};

struct Deleted {
    /// The marker's id where one was made, else the version that was asked for.
    version_id: Option<String>,
    delete_marker: bool,
}

pub(super) fn delete(store: &Store, request: &S3Request<DeleteObjectInput>) -> S3Result<DeleteObjectOutput> {
    let input = &request.input;
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    if let Some(condition) = &input.if_match {
        check_write(bucket.current(&input.key).map(AsRef::as_ref), Some(condition), None)?;
    }
    let removal = Removal { bypass_governance: input.bypass_governance_retention.unwrap_or(false) };
    let deleted = delete_one(store, &input.bucket, bucket, &input.key, input.version_id.as_deref(), removal)?;
    Ok(DeleteObjectOutput {
        delete_marker: deleted.delete_marker.then_some(true),
        version_id: deleted.version_id,
        ..Default::default()
    })
}

fn delete_one(
    store: &Store,
    name: &str,
    bucket: &mut Bucket,
    key: &str,
    version_id: Option<&str>,
    removal: Removal,
) -> S3Result<Deleted> {
    if let Some(id) = version_id {
        let found = bucket.version(key, id).cloned();
        if let Some(version) = &found {
            locks::allow_removal(version, removal)?;
        }
        store.remove(name, bucket, key, id)?;
        let delete_marker = found.is_some_and(|version| version.delete_marker);
        return Ok(Deleted { version_id: Some(id.to_owned()), delete_marker });
    }
    match bucket.settings.versioning {
        Versioning::Off => {
            store.remove(name, bucket, key, NULL_VERSION)?;
            Ok(Deleted { version_id: None, delete_marker: false })
        }
        Versioning::Enabled | Versioning::Suspended => {
            let marker = Version {
                id: String::new(),
                sequence: 0,
                last_modified: now(),
                delete_marker: true,
                etag: String::new(),
                size_bytes: 0,
                content: Content::default(),
                part_sizes: Vec::new(),
                checksum: None,
                attributes: Attributes::default(),
                thaw: None,
            };
            let version_id = store.insert(name, bucket, key, marker)?;
            Ok(Deleted { version_id, delete_marker: true })
        }
    }
}

/// Each key is judged on its own; what fails is listed, and the rest is deleted.
pub(super) fn delete_many(store: &Store, request: S3Request<DeleteObjectsInput>) -> S3Result<DeleteObjectsOutput> {
    let caller = caller(&request);
    let input = request.input;
    if input.delete.objects.is_empty() || input.delete.objects.len() > 1000 {
        return Err(s3_error!(MalformedXML, "The XML you provided was not well-formed"));
    }
    let bypass_governance = input.bypass_governance_retention.unwrap_or(false);
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for object in input.delete.objects {
        let version_id = object.version_id.as_deref();
        let action = if version_id.is_some() { "s3:DeleteObjectVersion" } else { "s3:DeleteObject" };
        let result = store.require(caller.as_deref(), action, &object.key).and_then(|()| {
            if bypass_governance {
                store.require(caller.as_deref(), "s3:BypassGovernanceRetention", &object.key)?;
            }
            if let Some(wanted) = object.e_tag.clone() {
                store.require(caller.as_deref(), "s3:GetObject", &object.key)?;
                let current = bucket.current(&object.key);
                if !current.is_some_and(|current| fits(&ETagCondition::ETag(wanted), &current.etag)) {
                    return Err(s3_error!(PreconditionFailed, "At least one of the pre-conditions did not hold"));
                }
            }
            delete_one(store, &input.bucket, bucket, &object.key, version_id, Removal { bypass_governance })
        });
        match result {
            Ok(deleted) => done.push(DeletedObject {
                key: Some(object.key),
                version_id: object.version_id,
                delete_marker: deleted.delete_marker.then_some(true),
                delete_marker_version_id: deleted.delete_marker.then_some(deleted.version_id).flatten(),
            }),
            Err(error) => errors.push(s3s::dto::Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(object.key),
                message: error.message().map(ToOwned::to_owned),
                version_id: object.version_id,
            }),
        }
    }
    let quiet = input.delete.quiet.unwrap_or(false);
    Ok(DeleteObjectsOutput { deleted: (!quiet).then_some(done), errors: Some(errors), ..Default::default() })
}
