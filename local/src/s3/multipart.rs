//! Multipart uploads, under the rules of "Multipart upload limits" and "CompleteMultipartUpload".

use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Result, s3_error};

use super::blob::{Content, Sink, receive};
use super::checksum::{
    Algorithm, Claim, Hashers, Kind, ObjectChecksum, Sum, claimed_sum, combine, composite, show_sum, single_sum,
};
use super::conditions::check_write;
use super::locks;
use super::model::{Part as StoredPart, Upload, Version};
use super::objects::{MAX_PUT_BYTES, attributes, content_etag, etag, wire_time};
use super::store::{Store, bucket, bucket_mut, now};

pub(super) const MIN_PART_BYTES: u64 = 5 << 20;
const MAX_PART_NUMBER: i32 = 10_000;

pub(super) fn no_such_upload() -> S3Error {
    s3_error!(
        NoSuchUpload,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."
    )
}

pub(super) fn check_part_number(number: i32) -> S3Result<()> {
    if (1..=MAX_PART_NUMBER).contains(&number) {
        return Ok(());
    }
    Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"))
}

/// The ETag of a part whose bytes nobody hashed.
pub(super) fn unhashed_etag() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub(super) fn create(
    store: &Store,
    mut request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<CreateMultipartUploadOutput> {
    let input = &mut request.input;
    let algorithm = input.checksum_algorithm.as_ref().map(|a| Algorithm::parse(a.as_str())).transpose()?;
    let kind = input.checksum_type.as_ref().map(|kind| Kind::parse(kind.as_str())).transpose()?;
    let checksum = match (algorithm, kind) {
        (None, None) => None,
        (None, Some(_)) => {
            return Err(s3_error!(
                InvalidRequest,
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
            ));
        }
        (Some(algorithm), kind) => {
            let kind = kind.unwrap_or(algorithm.default_kind());
            if !algorithm.allows(kind) {
                let (kind, name) = (kind.name(), algorithm.name().to_lowercase());
                return Err(s3_error!(
                    InvalidRequest,
                    "The {kind} checksum type cannot be used with the {name} checksum algorithm."
                ));
            }
            Some((algorithm, kind))
        }
    };
    let mut attributes = attributes!(input);
    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    // What is digested is each part: it is asked for there.
    locks::prepare(bucket, &mut attributes, true)?;
    let upload_id = uuid::Uuid::new_v4().simple().to_string();
    let encryption = attributes.encryption.clone();
    let upload = Upload { initiated: now(), attributes, checksum, parts: std::collections::BTreeMap::new() };
    bucket.uploads.insert((input.key.clone(), upload_id.clone()), upload);
    Ok(CreateMultipartUploadOutput {
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        upload_id: Some(upload_id),
        checksum_algorithm: checksum.map(|(algorithm, _)| ChecksumAlgorithm::from_static(algorithm.name())),
        checksum_type: checksum.map(|(_, kind)| ChecksumType::from_static(kind.name())),
        server_side_encryption: encryption.map(ServerSideEncryption::from),
        ..Default::default()
    })
}

fn with_upload<T>(
    store: &Store,
    name: &str,
    key: &str,
    upload_id: &str,
    read: impl FnOnce(&Upload) -> S3Result<T>,
) -> S3Result<T> {
    let state = store.lock();
    let uploads = &bucket(&state, name)?.uploads;
    read(uploads.get(&(key.to_owned(), upload_id.to_owned())).ok_or_else(no_such_upload)?)
}

/// The upload's checksum algorithm, if it has one.
pub(super) fn algorithm(store: &Store, name: &str, key: &str, upload_id: &str) -> S3Result<Option<Algorithm>> {
    with_upload(store, name, key, upload_id, |upload| Ok(upload.checksum.map(|(algorithm, _)| algorithm)))
}

pub(super) async fn upload_part(store: &Store, request: S3Request<UploadPartInput>) -> S3Result<UploadPartOutput> {
    let claim = Claim::from_headers(&request.headers)?;
    let input = request.input;
    check_part_number(input.part_number)?;
    let expected = with_upload(store, &input.bucket, &input.key, &input.upload_id, |upload| {
        let locked = upload.attributes.retention.is_some() || upload.attributes.legal_hold;
        if locked && !claim.has_digest() {
            return Err(s3_error!(
                InvalidRequest,
                "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Part requests with Object Lock parameters"
            ));
        }
        Ok(upload.checksum.map(|(algorithm, _)| algorithm))
    })?;
    if claim.algorithm() != expected {
        return Err(type_mismatch(expected, claim.algorithm()));
    }
    if input.content_length.is_some_and(|size| size.unsigned_abs() > MAX_PUT_BYTES) {
        return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
    }
    // A benchmark's sink still keeps the head of the object, which readers go back to.
    let sink = if store.discards() && input.part_number != 1 { Sink::Discard } else { store.kept_sink() };
    let received = receive(input.body, sink, Hashers::new(expected, Some(&claim))).await?;
    let size_bytes = received.blob.size_bytes;
    let sum = match &received.digests {
        Some(digests) => {
            claim.check(request.trailing_headers.as_ref(), digests)?;
            digests.get(expected.unwrap_or(Algorithm::Crc64Nvme)).cloned()
        }
        None => claim.resolve(request.trailing_headers.as_ref())?,
    };
    let part_etag = match &received.digests {
        Some(digests) => content_etag(&digests.crc64, size_bytes),
        None => unhashed_etag(),
    };
    let mut output = UploadPartOutput { e_tag: Some(etag(&part_etag)), ..Default::default() };
    show_sum!(output, |a| sum.as_ref().filter(|sum| sum.algorithm == a).map(Sum::base64));
    let content = Content::whole(received.blob);
    let part = StoredPart { etag: part_etag, content, size_bytes, uploaded: now(), sum };
    keep_part(store, &input.bucket, &input.key, &input.upload_id, input.part_number, part)?;
    Ok(output)
}

fn type_mismatch(expected: Option<Algorithm>, actual: Option<Algorithm>) -> S3Error {
    let name = |algorithm: Option<Algorithm>| algorithm.map_or("null".to_owned(), |a| a.name().to_lowercase());
    s3_error!(
        InvalidRequest,
        "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
        name(expected),
        name(actual)
    )
}

/// Fails where the upload was completed or aborted while the part was on its way.
pub(super) fn keep_part(
    store: &Store,
    name: &str,
    key: &str,
    upload_id: &str,
    number: i32,
    part: StoredPart,
) -> S3Result<()> {
    let mut state = store.lock();
    let uploads = &mut bucket_mut(&mut state, name)?.uploads;
    let upload = uploads.get_mut(&(key.to_owned(), upload_id.to_owned())).ok_or_else(no_such_upload)?;
    upload.parts.insert(number, part);
    Ok(())
}

pub(super) fn abort(store: &Store, input: AbortMultipartUploadInput) -> S3Result<AbortMultipartUploadOutput> {
    let mut state = store.lock();
    let uploads = &mut bucket_mut(&mut state, &input.bucket)?.uploads;
    uploads.remove(&(input.key, input.upload_id)).ok_or_else(no_such_upload)?;
    Ok(AbortMultipartUploadOutput::default())
}

/// The order of checks is: the upload, the list, the sizes, the checksums, then the preconditions in the step that publishes.
pub(super) fn complete(store: &Store, input: CompleteMultipartUploadInput) -> S3Result<CompleteMultipartUploadOutput> {
    let claimed = claimed_sum!(input)?;
    let listed = input.multipart_upload.and_then(|list| list.parts).unwrap_or_default();
    let (parts, attributes, checksum, initiated) =
        with_upload(store, &input.bucket, &input.key, &input.upload_id, |upload| {
            let parts = chosen(upload, &listed)?;
            Ok((parts, upload.attributes.clone(), upload.checksum, upload.initiated))
        })?;
    let size_bytes = parts.iter().map(|part| part.size_bytes).sum::<u64>();
    if let Some(expected) = input.mpu_object_size
        && u64::try_from(expected).ok() != Some(size_bytes)
    {
        return Err(s3_error!(
            InvalidRequest,
            "The provided 'x-amz-mp-object-size' header value {expected} does not match what was computed: {size_bytes}"
        ));
    }
    if let (Some(asked), Some((_, kind))) = (&input.checksum_type, checksum)
        && asked.as_str() != kind.name()
    {
        let kind = kind.name();
        return Err(s3_error!(
            InvalidRequest,
            "The upload was created using the {kind} checksum mode. The complete request must use the same checksum mode."
        ));
    }
    let (algorithm, kind) = checksum.unwrap_or((Algorithm::Crc64Nvme, Kind::FullObject));
    let computed = object_checksum(algorithm, kind, &parts);
    check_claim(claimed, algorithm, kind, computed.as_ref())?;

    let version = Version {
        id: String::new(),
        sequence: 0,
        // S3 dates a multipart object by the start of its upload.
        last_modified: initiated,
        delete_marker: false,
        etag: object_etag(&parts),
        size_bytes,
        part_sizes: parts.iter().map(|part| part.size_bytes).collect(),
        content: Content { segments: parts.into_iter().flat_map(|part| part.content.segments).collect() },
        checksum: computed.clone(),
        attributes,
        thaw: None,
    };
    let mut output = CompleteMultipartUploadOutput {
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        e_tag: Some(etag(&version.etag)),
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        checksum_type: computed.as_ref().map(|checksum| ChecksumType::from_static(checksum.kind.name())),
        server_side_encryption: version.attributes.encryption.clone().map(ServerSideEncryption::from),
        ..Default::default()
    };
    show_sum!(output, |algorithm| computed.as_ref().and_then(|checksum| checksum.value_of(algorithm)));

    let mut state = store.lock();
    let bucket = bucket_mut(&mut state, &input.bucket)?;
    let id = (input.key, input.upload_id);
    if !bucket.uploads.contains_key(&id) {
        return Err(no_such_upload());
    }
    let current = bucket.current(&id.0).map(AsRef::as_ref);
    check_write(current, input.if_match.as_ref(), input.if_none_match.as_ref())?;
    output.version_id = store.insert(&input.bucket, bucket, &id.0, version)?;
    bucket.uploads.remove(&id);
    Ok(output)
}

/// The listed parts, held against those that were uploaded.
fn chosen(upload: &Upload, listed: &[CompletedPart]) -> S3Result<Vec<StoredPart>> {
    let invalid = || {
        s3_error!(
            InvalidPart,
            "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."
        )
    };
    if listed.is_empty() {
        return Err(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema"
        ));
    }
    let mut previous = 0;
    for part in listed {
        let number = part.part_number.unwrap_or(0);
        if number <= previous {
            return Err(s3_error!(
                InvalidPartOrder,
                "The list of parts was not in ascending order. Parts must be ordered by part number."
            ));
        }
        previous = number;
    }
    let mut parts = Vec::with_capacity(listed.len());
    for (position, entry) in listed.iter().enumerate() {
        let part = entry.part_number.and_then(|number| upload.parts.get(&number)).ok_or_else(invalid)?;
        if entry.e_tag.as_ref().is_none_or(|etag| etag.value() != part.etag) {
            return Err(invalid());
        }
        check_listed_sum(upload, entry, part)?;
        if part.size_bytes < MIN_PART_BYTES && position + 1 < listed.len() {
            return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
        }
        parts.push(part.clone());
    }
    Ok(parts)
}

/// The list may repeat each part's checksum, and must where the object's is made of them.
fn check_listed_sum(upload: &Upload, entry: &CompletedPart, part: &StoredPart) -> S3Result<()> {
    let listed = single_sum([
        (Algorithm::Crc32, entry.checksum_crc32.as_deref()),
        (Algorithm::Crc32c, entry.checksum_crc32c.as_deref()),
        (Algorithm::Crc64Nvme, entry.checksum_crc64nvme.as_deref()),
        (Algorithm::Sha1, entry.checksum_sha1.as_deref()),
        (Algorithm::Sha256, entry.checksum_sha256.as_deref()),
    ])?;
    match (listed, upload.checksum) {
        (None, Some((algorithm, Kind::Composite))) => {
            let (name, number) = (algorithm.name().to_lowercase(), entry.part_number.unwrap_or(0));
            Err(s3_error!(
                InvalidRequest,
                "The upload was created using a {name} checksum. The complete request must include the checksum for each part. It was missing for part {number} in the request."
            ))
        }
        (Some((algorithm, value)), _) => {
            let sum = Sum::parse(algorithm, &value)?;
            match &part.sum {
                Some(stored) if *stored != sum => Err(s3_error!(
                    InvalidPart,
                    "One or more of the specified parts could not be found. The checksum may not match the part's checksum."
                )),
                _ => Ok(()),
            }
        }
        (None, _) => Ok(()),
    }
}

fn object_checksum(algorithm: Algorithm, kind: Kind, parts: &[StoredPart]) -> Option<ObjectChecksum> {
    let sums = parts.iter().map(|part| part.sum.as_ref().filter(|sum| sum.algorithm == algorithm));
    let sums = sums.collect::<Option<Vec<&Sum>>>()?;
    let value = match kind {
        Kind::Composite => composite(algorithm, sums.into_iter()),
        Kind::FullObject => {
            combine(algorithm, sums.into_iter().zip(parts.iter().map(|part| part.size_bytes)))?.base64()
        }
    };
    Some(ObjectChecksum { algorithm, kind, value })
}

fn check_claim(
    claimed: Option<(Algorithm, String)>,
    algorithm: Algorithm,
    kind: Kind,
    computed: Option<&ObjectChecksum>,
) -> S3Result<()> {
    let Some((claimed_algorithm, value)) = claimed else { return Ok(()) };
    if claimed_algorithm != algorithm {
        return Err(type_mismatch(Some(algorithm), Some(claimed_algorithm)));
    }
    let Some(computed) = computed else { return Ok(()) };
    match kind {
        Kind::FullObject => Sum::parse(algorithm, &value)?.expect(&Sum::parse(algorithm, &computed.value)?),
        Kind::Composite if computed.value == value || computed.value.split('-').next() == Some(value.as_str()) => {
            Ok(())
        }
        Kind::Composite => {
            let name = algorithm.name();
            Err(s3_error!(BadDigest, "The {name} you specified did not match the calculated checksum."))
        }
    }
}

fn object_etag(parts: &[StoredPart]) -> String {
    let mut digest = Hashers::new(None, None);
    for part in parts {
        digest.update(part.etag.as_bytes());
    }
    let size_bytes = parts.iter().map(|part| part.size_bytes).sum();
    format!("{}-{}", content_etag(&digest.finish().crc64, size_bytes), parts.len())
}

pub(super) fn list_parts(store: &Store, input: &ListPartsInput) -> S3Result<ListPartsOutput> {
    let max = input.max_parts.unwrap_or(1000).clamp(0, 1000);
    let after = input.part_number_marker.unwrap_or(0);
    with_upload(store, &input.bucket, &input.key, &input.upload_id, |upload| {
        let mut rest = upload.parts.range(after.saturating_add(1)..);
        let page: Vec<(&i32, &StoredPart)> = rest.by_ref().take(usize::try_from(max).unwrap_or(0)).collect();
        let is_truncated = rest.next().is_some();
        let last = page.last().map(|(number, _)| **number);
        let parts = page.into_iter().map(|(number, part)| {
            let mut shown = Part {
                part_number: Some(*number),
                e_tag: Some(etag(&part.etag)),
                size: i64::try_from(part.size_bytes).ok(),
                last_modified: Some(wire_time(part.uploaded)),
                ..Default::default()
            };
            if upload.checksum.is_some() {
                show_sum!(shown, |a| part.sum.as_ref().filter(|sum| sum.algorithm == a).map(Sum::base64));
            }
            shown
        });
        Ok(ListPartsOutput {
            parts: Some(parts.collect()),
            is_truncated: Some(is_truncated),
            next_part_number_marker: last,
            part_number_marker: Some(after),
            max_parts: Some(max),
            checksum_algorithm: upload.checksum.map(|(a, _)| ChecksumAlgorithm::from_static(a.name())),
            checksum_type: upload.checksum.map(|(_, kind)| ChecksumType::from_static(kind.name())),
            storage_class: Some(StorageClass::from(upload.attributes.storage_class.clone())),
            bucket: Some(input.bucket.clone()),
            key: Some(input.key.clone()),
            upload_id: Some(input.upload_id.clone()),
            ..Default::default()
        })
    })
}
