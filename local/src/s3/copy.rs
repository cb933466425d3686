//! CopyObject and UploadPartCopy: references to the same bytes, under the rights and conditions of the source.

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::blob::Content;
use super::checksum::{Algorithm, Hashers, Kind, ObjectChecksum, show_sum};
use super::conditions::check_source;
use super::model::{Part, Version, Versioning};
use super::multipart;
use super::objects::{MAX_PUT_BYTES, attributes, caller, content_etag, etag, find, wire_time};
use super::refusal::refuse;
use super::store::{Store, bucket, bucket_mut, now};
use super::{buckets, locks};

fn source(store: &Store, caller: Option<&str>, source: &CopySource) -> S3Result<(Arc<Version>, Option<String>)> {
    let CopySource::Bucket { bucket, key, version_id } = source else {
        return Err(s3_error!(NotImplemented, "Only a bucket can be the source of a copy"));
    };
    let action = if version_id.is_some() { "s3:GetObjectVersion" } else { "s3:GetObject" };
    store.require(caller, action, key)?;
    let (version, versioning) = find(store, caller, bucket, key, version_id.as_deref())?;
    if !version.is_readable(jiff::Timestamp::now()) {
        return Err(refuse(
            403,
            "ObjectNotInActiveTierError",
            format_args!("The source object of the COPY action is not in the active tier."),
        ));
    }
    let shown = (versioning != Versioning::Off).then(|| version.id.clone());
    Ok((version, shown))
}

pub(super) async fn copy(store: &Store, mut request: S3Request<CopyObjectInput>) -> S3Result<CopyObjectOutput> {
    let caller = caller(&request);
    let input = &mut request.input;
    let (from, copy_source_version_id) = source(store, caller.as_deref(), &input.copy_source)?;
    check_source(&from, input.copy_source_if_match.as_ref(), input.copy_source_if_none_match.as_ref())?;
    if from.size_bytes > MAX_PUT_BYTES {
        return Err(s3_error!(
            InvalidRequest,
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120"
        ));
    }
    let replaces = input.metadata_directive.as_ref().is_some_and(|directive| directive.as_str() == "REPLACE");
    let retags = input.tagging_directive.as_ref().is_some_and(|directive| directive.as_str() == "REPLACE");
    if let CopySource::Bucket { bucket, key, version_id: None } = &input.copy_source
        && **bucket == *input.bucket
        && **key == *input.key
        && !replaces
        && input.storage_class.is_none()
        && input.server_side_encryption.is_none()
    {
        return Err(s3_error!(
            InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes."
        ));
    }
    let tags = retags.then(|| buckets::parse_tags(input.tagging.as_deref())).transpose()?;
    let given = attributes!(input);
    let mut attributes = if replaces { given.clone() } else { from.attributes.clone() };
    attributes.tags = tags.unwrap_or_else(|| from.attributes.tags.clone());
    attributes.storage_class = given.storage_class;
    attributes.encryption = given.encryption;
    attributes.kms_key = given.kms_key;
    attributes.retention = given.retention;
    attributes.legal_hold = given.legal_hold;
    // The source's bytes are known to be whole: no digest is asked of the caller.
    locks::prepare(bucket(&store.lock(), &input.bucket)?, &mut attributes, true)?;

    let asked = input.checksum_algorithm.as_ref().map(|a| Algorithm::parse(a.as_str())).transpose()?;
    let held = from.checksum.as_ref().filter(|held| held.kind == Kind::FullObject);
    let checksum = match (asked, held) {
        (None, Some(held)) => Some(held.clone()),
        (Some(asked), Some(held)) if held.algorithm == asked => Some(held.clone()),
        (asked, _) if from.content.is_kept() => {
            let algorithm = asked.unwrap_or(Algorithm::Crc64Nvme);
            let digests = from.content.hash(Hashers::new(Some(algorithm), None)).await?;
            let value = digests.get(algorithm).map(super::checksum::Sum::base64).unwrap_or_default();
            Some(ObjectChecksum { algorithm, kind: Kind::FullObject, value })
        }
        _ => None,
    };
    let version = Version {
        id: String::new(),
        sequence: 0,
        last_modified: now(),
        delete_marker: false,
        etag: from.etag.clone(),
        size_bytes: from.size_bytes,
        content: from.content.clone(),
        part_sizes: Vec::new(),
        checksum: checksum.clone(),
        attributes,
        thaw: None,
    };
    let mut result = CopyObjectResult {
        e_tag: Some(etag(&version.etag)),
        last_modified: Some(wire_time(version.last_modified)),
        checksum_type: checksum.as_ref().map(|checksum| ChecksumType::from_static(checksum.kind.name())),
        ..Default::default()
    };
    show_sum!(result, |algorithm| checksum.as_ref().and_then(|checksum| checksum.value_of(algorithm)));
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    let version_id = store.insert(&input.bucket, bucket, &input.key, version)?;
    Ok(CopyObjectOutput { copy_object_result: Some(result), copy_source_version_id, version_id, ..Default::default() })
}

pub(super) async fn copy_part(
    store: &Store,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<UploadPartCopyOutput> {
    let caller = caller(&request);
    let input = request.input;
    multipart::check_part_number(input.part_number)?;
    let algorithm = multipart::algorithm(store, &input.bucket, &input.key, &input.upload_id)?;
    let (from, copy_source_version_id) = source(store, caller.as_deref(), &input.copy_source)?;
    check_source(&from, input.copy_source_if_match.as_ref(), input.copy_source_if_none_match.as_ref())?;
    let content = match &input.copy_source_range {
        None => from.content.clone(),
        Some(text) => slice(&from, text)?,
    };
    let size_bytes = content.size_bytes();
    if size_bytes > MAX_PUT_BYTES {
        return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
    }
    let algorithm = algorithm.unwrap_or(Algorithm::Crc64Nvme);
    let digests = if content.is_kept() { Some(content.hash(Hashers::new(Some(algorithm), None)).await?) } else { None };
    let sum = digests.as_ref().and_then(|digests| digests.get(algorithm)).cloned();
    let part_etag = match &digests {
        Some(digests) => content_etag(&digests.crc64, size_bytes),
        None => multipart::unhashed_etag(),
    };
    let uploaded = now();
    let mut result = CopyPartResult {
        e_tag: Some(etag(&part_etag)),
        last_modified: Some(wire_time(uploaded)),
        ..Default::default()
    };
    show_sum!(result, |a| sum.as_ref().filter(|sum| sum.algorithm == a).map(super::checksum::Sum::base64));
    let part = Part { etag: part_etag, content, size_bytes, uploaded, sum };
    multipart::keep_part(store, &input.bucket, &input.key, &input.upload_id, input.part_number, part)?;
    Ok(UploadPartCopyOutput { copy_part_result: Some(result), copy_source_version_id, ..Default::default() })
}

/// Unlike a read's, this range must lie wholly inside the source.
fn slice(from: &Version, text: &str) -> S3Result<Content> {
    let parsed = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let bounds = parsed.and_then(|(first, last)| Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?)));
    let Some((first, last)) = bounds else {
        return Err(s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy"
        ));
    };
    if first > last || last >= from.size_bytes {
        let size_bytes = from.size_bytes;
        return Err(s3_error!(InvalidArgument, "Range specified is not valid for source object of size: {size_bytes}"));
    }
    Ok(from.content.slice(first..last + 1))
}
