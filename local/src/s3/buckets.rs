//! Buckets and their settings, and the tags of objects.

use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::model::{Bucket as StoredBucket, BucketSettings, Versioning};
use super::objects::{caller, find, wire_time};
use super::refusal::refuse;
use super::store::{BucketOptions, Store, bucket, bucket_mut, internal};

pub(super) fn create(store: &Store, input: &CreateBucketInput) -> S3Result<CreateBucketOutput> {
    if store.lock().contains_key(&input.bucket) {
        return Err(s3_error!(
            BucketAlreadyOwnedByYou,
            "Your previous request to create the named bucket succeeded and you already own it."
        ));
    }
    let object_lock = input.object_lock_enabled_for_bucket.unwrap_or(false);
    store.create_bucket(&input.bucket, BucketOptions { versioning: false, object_lock }).map_err(internal)?;
    Ok(CreateBucketOutput { location: Some(format!("/{}", input.bucket)) })
}

pub(super) fn delete(store: &Store, name: &str) -> S3Result<()> {
    let mut state = store.lock();
    if !bucket(&state, name)?.objects.is_empty() {
        return Err(s3_error!(BucketNotEmpty, "The bucket you tried to delete is not empty."));
    }
    if let Some(disk) = store.disk() {
        disk.remove_bucket(name).map_err(internal)?;
    }
    state.remove(name);
    Ok(())
}

pub(super) fn head(store: &Store, name: &str) -> S3Result<HeadBucketOutput> {
    bucket(&store.lock(), name)?;
    Ok(HeadBucketOutput { bucket_region: Some(store.region.clone()), ..Default::default() })
}

pub(super) fn list(store: &Store) -> ListBucketsOutput {
    let state = store.lock();
    let buckets = state.iter().map(|(name, bucket)| Bucket {
        name: Some(name.clone()),
        creation_date: Some(wire_time(bucket.settings.created)),
        ..Default::default()
    });
    let owner = Owner { display_name: None, id: Some(super::ACCOUNT_ID.to_owned()) };
    ListBucketsOutput { buckets: Some(buckets.collect()), owner: Some(owner), ..Default::default() }
}

/// S3 shows no constraint for us-east-1.
pub(super) fn location(store: &Store, name: &str) -> S3Result<GetBucketLocationOutput> {
    bucket(&store.lock(), name)?;
    let constraint = (store.region != "us-east-1").then(|| BucketLocationConstraint::from(store.region.clone()));
    Ok(GetBucketLocationOutput { location_constraint: constraint })
}

pub(super) fn save(store: &Store, name: &str, bucket: &mut StoredBucket, settings: BucketSettings) -> S3Result<()> {
    if let Some(disk) = store.disk() {
        disk.save_bucket(name, &settings).map_err(internal)?;
    }
    bucket.settings = settings;
    Ok(())
}

pub(super) fn get_versioning(store: &Store, name: &str) -> S3Result<GetBucketVersioningOutput> {
    let status = match bucket(&store.lock(), name)?.settings.versioning {
        Versioning::Off => None,
        Versioning::Enabled => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED)),
        Versioning::Suspended => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::SUSPENDED)),
    };
    Ok(GetBucketVersioningOutput { status, ..Default::default() })
}

pub(super) fn put_versioning(store: &Store, input: &PutBucketVersioningInput) -> S3Result<()> {
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    let versioning = match input.versioning_configuration.status.as_ref().map(BucketVersioningStatus::as_str) {
        Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(BucketVersioningStatus::SUSPENDED) if bucket.settings.object_lock => {
            return Err(s3_error!(
                InvalidBucketState,
                "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed."
            ));
        }
        Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        _ => return Err(s3_error!(MalformedXML)),
    };
    let settings = BucketSettings { versioning, ..bucket.settings.clone() };
    save(store, &input.bucket, bucket, settings)
}

pub(super) fn put_lifecycle(
    store: &Store,
    input: PutBucketLifecycleConfigurationInput,
) -> S3Result<PutBucketLifecycleConfigurationOutput> {
    let configuration = input.lifecycle_configuration.ok_or_else(|| s3_error!(MalformedXML))?;
    let mut xml = Vec::new();
    let mut serializer = s3s::xml::Serializer::new(&mut xml);
    s3s::xml::Serialize::serialize(&configuration, &mut serializer).map_err(internal)?;
    let minimum = input.transition_default_minimum_object_size;
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    let settings = BucketSettings {
        lifecycle: Some(String::from_utf8_lossy(&xml).into_owned()),
        lifecycle_minimum_size: minimum.as_ref().map(|minimum| minimum.as_str().to_owned()),
        ..bucket.settings.clone()
    };
    save(store, &input.bucket, bucket, settings)?;
    Ok(PutBucketLifecycleConfigurationOutput { transition_default_minimum_object_size: minimum })
}

pub(super) fn get_lifecycle(store: &Store, name: &str) -> S3Result<GetBucketLifecycleConfigurationOutput> {
    let state = store.lock();
    let settings = &bucket(&state, name)?.settings;
    let Some(xml) = &settings.lifecycle else {
        return Err(s3_error!(NoSuchLifecycleConfiguration, "The lifecycle configuration does not exist"));
    };
    let mut deserializer = s3s::xml::Deserializer::new(xml.as_bytes());
    let configuration: BucketLifecycleConfiguration =
        s3s::xml::Deserialize::deserialize(&mut deserializer).map_err(internal)?;
    Ok(GetBucketLifecycleConfigurationOutput {
        rules: Some(configuration.rules),
        transition_default_minimum_object_size: settings
            .lifecycle_minimum_size
            .clone()
            .map(TransitionDefaultMinimumObjectSize::from),
    })
}

pub(super) fn delete_lifecycle(store: &Store, name: &str) -> S3Result<()> {
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, name)?;
    let settings = BucketSettings { lifecycle: None, lifecycle_minimum_size: None, ..bucket.settings.clone() };
    save(store, name, bucket, settings)
}

/// The `x-amz-tagging` header: an URL query.
pub(super) fn parse_tags(header: Option<&str>) -> S3Result<Vec<(String, String)>> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = header.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let tags = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v)));
    checked_tags(tags.collect())
}

fn checked_tags(tags: Vec<(String, String)>) -> S3Result<Vec<(String, String)>> {
    if tags.len() > 10 {
        return Err(refuse(400, "BadRequest", format_args!("Object tags cannot be greater than 10")));
    }
    Ok(tags)
}

pub(super) fn put_tags(store: &Store, request: S3Request<PutObjectTaggingInput>) -> S3Result<PutObjectTaggingOutput> {
    let caller = caller(&request);
    let input = request.input;
    let tags =
        input.tagging.tag_set.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default()));
    let tags = checked_tags(tags.collect())?;
    let version_id = set_tags(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref(), tags)?;
    Ok(PutObjectTaggingOutput { version_id })
}

pub(super) fn delete_tags(
    store: &Store,
    request: &S3Request<DeleteObjectTaggingInput>,
) -> S3Result<DeleteObjectTaggingOutput> {
    let (caller, input) = (caller(request), &request.input);
    let (name, version_id) = (&input.bucket, input.version_id.as_deref());
    let version_id = set_tags(store, caller.as_deref(), name, &input.key, version_id, Vec::new())?;
    Ok(DeleteObjectTaggingOutput { version_id })
}

fn set_tags(
    store: &Store,
    caller: Option<&str>,
    name: &str,
    key: &str,
    version_id: Option<&str>,
    tags: Vec<(String, String)>,
) -> S3Result<Option<String>> {
    let (version, versioning) = find(store, caller, name, key, version_id)?;
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, name)?;
    store.amend(name, bucket, key, &version.id, |version| version.attributes.tags = tags)?;
    Ok((versioning != Versioning::Off).then(|| version.id.clone()))
}

pub(super) fn get_tags(store: &Store, request: &S3Request<GetObjectTaggingInput>) -> S3Result<GetObjectTaggingOutput> {
    let (caller, input) = (caller(request), &request.input);
    let (version, versioning) = find(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    let tags = version.attributes.tags.iter().map(|(k, v)| Tag { key: Some(k.clone()), value: Some(v.clone()) });
    let version_id = (versioning != Versioning::Off).then(|| version.id.clone());
    Ok(GetObjectTaggingOutput { tag_set: tags.collect(), version_id })
}
