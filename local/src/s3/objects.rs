//! Objects: put, get, head, delete.

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::blob::{Content, receive};
use super::checksum::{Algorithm, Claim, Hashers, Kind, ObjectChecksum, Sum, show_sum};
use super::conditions::{ReadConditions, check_write};
use super::locks;
use super::model::{Attributes, Version, Versioning};
use super::refusal::refuse;
use super::store::{Store, bucket, bucket_mut, now};
use super::thaw;

/// "Uploading objects", 5 GiB in one PUT.
pub(super) const MAX_PUT_BYTES: u64 = 5 << 30;

pub(super) fn caller<T>(request: &S3Request<T>) -> Option<String> {
    request.credentials.as_ref().map(|credentials| credentials.access_key.clone())
}

/// Attributes from the input of PutObject, CreateMultipartUpload or CopyObject, whose fields have the same names.
macro_rules! attributes {
    ($input:expr) => {
        $crate::s3::model::Attributes {
            content_type: $input.content_type.take(),
            cache_control: $input.cache_control.take(),
            content_disposition: $input.content_disposition.take(),
            content_encoding: $crate::s3::objects::stored_encoding($input.content_encoding.take()),
            content_language: $input.content_language.take(),
            metadata: $input.metadata.take().unwrap_or_default().into_iter().collect(),
            storage_class: $crate::s3::objects::storage_class($input.storage_class.take())?,
            encryption: $input.server_side_encryption.take().map(|sse| sse.as_str().to_owned()),
            kms_key: $input.ssekms_key_id.take(),
            tags: $crate::s3::buckets::parse_tags($input.tagging.take().as_deref())?,
            retention: $crate::s3::locks::requested(
                $input.object_lock_mode.take().as_ref().map(|mode| mode.as_str()),
                $input.object_lock_retain_until_date.take(),
            )?,
            legal_hold: $input.object_lock_legal_hold_status.take().is_some_and(|status| status.as_str() == "ON"),
        }
    };
}
pub(super) use attributes;

/// `aws-chunked` names the framing of the request and is not kept.
pub(super) fn stored_encoding(given: Option<String>) -> Option<String> {
    let given = given?;
    let kept: Vec<&str> =
        given.split(',').map(str::trim).filter(|name| *name != "aws-chunked" && !name.is_empty()).collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

pub(super) fn storage_class(given: Option<StorageClass>) -> S3Result<String> {
    let class = given.map_or_else(|| "STANDARD".to_owned(), |class| class.as_str().to_owned());
    match class.as_str() {
        "STANDARD"
        | "STANDARD_IA"
        | "ONEZONE_IA"
        | "INTELLIGENT_TIERING"
        | "GLACIER_IR"
        | "GLACIER"
        | "DEEP_ARCHIVE"
        | "REDUCED_REDUNDANCY" => Ok(class),
        _ => Err(s3_error!(InvalidStorageClass, "The storage class you specified is not valid")),
    }
}

/// S3 shows no storage class for STANDARD in the headers of an object.
fn shown_class(version: &Version) -> Option<StorageClass> {
    let class = version.attributes.storage_class.as_str();
    (class != "STANDARD").then(|| StorageClass::from(class.to_owned()))
}

pub(super) fn etag(value: &str) -> ETag {
    ETag::Strong(value.to_owned())
}

/// Same bytes, same ETag; not an MD5 sum.
pub(super) fn content_etag(crc64: &Sum, size_bytes: u64) -> String {
    let crc: String = crc64.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{crc}{size_bytes:016x}")
}

pub(super) fn wire_time(at: Timestamp) -> s3s::dto::Timestamp {
    s3s::dto::Timestamp::from(std::time::SystemTime::from(at))
}

pub(super) fn from_wire(at: &s3s::dto::Timestamp) -> S3Result<Timestamp> {
    let mut text = Vec::new();
    at.format(TimestampFormat::DateTime, &mut text).map_err(|e| s3_error!(e, InvalidArgument))?;
    String::from_utf8_lossy(&text).parse().map_err(|e| s3_error!(e, InvalidArgument))
}

pub(super) async fn put(store: &Store, mut request: S3Request<PutObjectInput>) -> S3Result<PutObjectOutput> {
    let claim = Claim::from_headers(&request.headers)?;
    let input = &mut request.input;
    if input.content_length.is_some_and(|size| size.unsigned_abs() > MAX_PUT_BYTES) {
        return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
    }
    let mut attributes = attributes!(input);
    locks::prepare(bucket(&store.lock(), &input.bucket)?, &mut attributes, claim.has_digest())?;
    let wanted = claim.algorithm();
    let received = receive(input.body.take(), store.kept_sink(), Hashers::new(wanted, Some(&claim))).await?;
    let digests = received.digests.ok_or_else(|| s3_error!(InternalError))?;
    claim.check(request.trailing_headers.as_ref(), &digests)?;

    let algorithm = wanted.unwrap_or(Algorithm::Crc64Nvme);
    let checksum =
        digests.get(algorithm).map(|sum| ObjectChecksum { algorithm, kind: Kind::FullObject, value: sum.base64() });
    let size_bytes = received.blob.size_bytes;
    let version = Version {
        id: String::new(),
        sequence: 0,
        last_modified: now(),
        delete_marker: false,
        etag: content_etag(&digests.crc64, size_bytes),
        size_bytes,
        content: Content::whole(received.blob),
        part_sizes: Vec::new(),
        checksum: checksum.clone(),
        attributes,
        thaw: None,
    };
    let mut output = PutObjectOutput {
        e_tag: Some(etag(&version.etag)),
        checksum_type: checksum.as_ref().map(|checksum| ChecksumType::from_static(checksum.kind.name())),
        server_side_encryption: version.attributes.encryption.clone().map(ServerSideEncryption::from),
        ..Default::default()
    };
    show_sum!(output, |algorithm| checksum.as_ref().and_then(|checksum| checksum.value_of(algorithm)));

    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    let current = bucket.current(&input.key).map(AsRef::as_ref);
    check_write(current, input.if_match.as_ref(), input.if_none_match.as_ref())?;
    output.version_id = store.insert(&input.bucket, bucket, &input.key, version)?;
    Ok(output)
}

/// The version to read. Absence is a 403 to a caller who may not list.
pub(super) fn find(
    store: &Store,
    caller: Option<&str>,
    name: &str,
    key: &str,
    version_id: Option<&str>,
) -> S3Result<(Arc<Version>, Versioning)> {
    let state = store.lock();
    let bucket = bucket(&state, name)?;
    let versioning = bucket.settings.versioning;
    let found = match version_id {
        Some(id) => bucket.version(key, id),
        None => bucket.latest(key),
    };
    let marker_headers = |id: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert("x-amz-version-id", id);
        }
        headers
    };
    match found {
        Some(version) if !version.delete_marker => Ok((Arc::clone(version), versioning)),
        Some(marker) if version_id.is_some() => {
            let mut error = s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource.");
            error.set_headers(marker_headers(&marker.id));
            Err(error)
        }
        _ if !store.allows(caller, "s3:ListBucket", "") => Err(s3_error!(AccessDenied, "Access Denied")),
        Some(marker) => {
            let mut error = s3_error!(NoSuchKey, "The specified key does not exist.");
            error.set_headers(marker_headers(&marker.id));
            Err(error)
        }
        None if version_id.is_some() => Err(s3_error!(NoSuchVersion, "The specified version does not exist.")),
        None => Err(s3_error!(NoSuchKey, "The specified key does not exist.")),
    }
}

fn no_such_part() -> s3s::S3Error {
    refuse(416, "InvalidPartNumber", format_args!("The requested partnumber is not satisfiable"))
}

struct Selection {
    range: Range<u64>,
    partial: bool,
    parts_count: Option<i32>,
}

fn select(version: &Version, range: Option<&s3s::dto::Range>, part_number: Option<i32>) -> S3Result<Selection> {
    let whole = 0..version.size_bytes;
    let unsatisfiable = || s3_error!(InvalidRange, "The requested range is not satisfiable");
    match (range, part_number) {
        (Some(_), Some(_)) => {
            Err(s3_error!(InvalidRequest, "Cannot specify both Range header and partNumber query parameter"))
        }
        (Some(range), None) => {
            let range = range.check(version.size_bytes).map_err(|_| unsatisfiable())?;
            Ok(Selection { range, partial: true, parts_count: None })
        }
        (None, Some(number)) if version.part_sizes.is_empty() => match number {
            1 => Ok(Selection { range: whole, partial: version.size_bytes > 0, parts_count: None }),
            _ => Err(no_such_part()),
        },
        (None, Some(number)) => {
            let index = usize::try_from(number - 1).ok().filter(|index| *index < version.part_sizes.len());
            let index = index.ok_or_else(no_such_part)?;
            let start: u64 = version.part_sizes[..index].iter().sum();
            let range = start..start + version.part_sizes[index];
            Ok(Selection { range, partial: true, parts_count: i32::try_from(version.part_sizes.len()).ok() })
        }
        (None, None) => Ok(Selection { range: whole, partial: false, parts_count: None }),
    }
}

fn content_range(selection: &Selection, size_bytes: u64) -> Option<String> {
    let range = &selection.range;
    selection.partial.then(|| format!("bytes {}-{}/{size_bytes}", range.start, range.end.saturating_sub(1)))
}

fn read_conditions<'a>(
    if_match: Option<&'a ETagCondition>,
    if_none_match: Option<&'a ETagCondition>,
    modified: Option<&s3s::dto::Timestamp>,
    unmodified: Option<&s3s::dto::Timestamp>,
) -> S3Result<ReadConditions<'a>> {
    Ok(ReadConditions {
        if_match,
        if_none_match,
        if_modified_since: modified.map(from_wire).transpose()?,
        if_unmodified_since: unmodified.map(from_wire).transpose()?,
    })
}

/// The fields that GetObject and HeadObject show alike.
macro_rules! describe {
    ($output:expr, $version:expr, $versioning:expr, $selection:expr) => {{
        let attributes: Attributes = $version.attributes.clone();
        $output.accept_ranges = Some("bytes".to_owned());
        $output.content_length = i64::try_from($selection.range.end - $selection.range.start).ok();
        $output.content_range = content_range(&$selection, $version.size_bytes);
        $output.parts_count = $selection.parts_count;
        $output.e_tag = Some(etag(&$version.etag));
        $output.last_modified = Some(wire_time($version.last_modified));
        $output.content_type = Some(attributes.content_type.unwrap_or_else(|| "binary/octet-stream".to_owned()));
        $output.cache_control = attributes.cache_control;
        $output.content_disposition = attributes.content_disposition;
        $output.content_encoding = attributes.content_encoding;
        $output.content_language = attributes.content_language;
        $output.metadata = Some(attributes.metadata.into_iter().collect());
        $output.storage_class = shown_class(&$version);
        $output.server_side_encryption = attributes.encryption.map(ServerSideEncryption::from);
        $output.ssekms_key_id = attributes.kms_key;
        $output.object_lock_mode = attributes.retention.map(|lock| ObjectLockMode::from_static(lock.mode.name()));
        $output.object_lock_retain_until_date = attributes.retention.map(|lock| wire_time(lock.until));
        $output.object_lock_legal_hold_status =
            attributes.legal_hold.then(|| ObjectLockLegalHoldStatus::from_static("ON"));
        $output.version_id = ($versioning != Versioning::Off).then(|| $version.id.clone());
        $output.restore = thaw::header(&$version);
    }};
}

/// Checksums are shown on request, and only where they are of the bytes that are sent.
macro_rules! show_checksum {
    ($output:expr, $version:expr, $mode:expr, $selection:expr) => {{
        if $mode.is_some() && !$selection.partial {
            let checksum = $version.checksum.as_ref();
            $output.checksum_type = checksum.map(|checksum| ChecksumType::from_static(checksum.kind.name()));
            show_sum!($output, |algorithm| checksum.and_then(|checksum| checksum.value_of(algorithm)));
        }
    }};
}

pub(super) fn get(store: &Store, request: &S3Request<GetObjectInput>) -> S3Result<GetObjectOutput> {
    let input = &request.input;
    let caller = caller(request);
    let (version, versioning) = find(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    let (modified, unmodified) = (input.if_modified_since.as_ref(), input.if_unmodified_since.as_ref());
    read_conditions(input.if_match.as_ref(), input.if_none_match.as_ref(), modified, unmodified)?.check(&version)?;
    if !version.is_readable(Timestamp::now()) {
        return Err(s3_error!(InvalidObjectState, "The operation is not valid for the object's storage class"));
    }
    let selection = select(&version, input.range.as_ref(), input.part_number)?;
    let content = version.content.slice(selection.range.clone());
    if !content.is_kept() {
        return Err(s3_error!(InternalError, "These bytes were discarded: the server runs with discard_parts"));
    }
    let mut output = GetObjectOutput { body: Some(content.into_body()), ..Default::default() };
    describe!(output, version, versioning, selection);
    show_checksum!(output, version, input.checksum_mode, selection);
    output.tag_count = i32::try_from(version.attributes.tags.len()).ok().filter(|count| *count > 0);
    Ok(output)
}

pub(super) fn head(store: &Store, request: &S3Request<HeadObjectInput>) -> S3Result<HeadObjectOutput> {
    let input = &request.input;
    let caller = caller(request);
    let (version, versioning) = find(store, caller.as_deref(), &input.bucket, &input.key, input.version_id.as_deref())?;
    let (modified, unmodified) = (input.if_modified_since.as_ref(), input.if_unmodified_since.as_ref());
    read_conditions(input.if_match.as_ref(), input.if_none_match.as_ref(), modified, unmodified)?.check(&version)?;
    let selection = select(&version, input.range.as_ref(), input.part_number)?;
    let mut output = HeadObjectOutput::default();
    describe!(output, version, versioning, selection);
    show_checksum!(output, version, input.checksum_mode, selection);
    Ok(output)
}
