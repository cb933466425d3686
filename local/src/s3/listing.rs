//! Listings: prefixes, delimiters and pages, in the byte order of keys.

use std::ops::Bound;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::access::ACCOUNT_ID;
use super::model::Version;
use super::objects::{etag, wire_time};
use super::store::{Store, bucket};

const MAX_KEYS: i32 = 1000;

/// What `encoding-type=url` leaves as it is.
const KEPT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'/').remove(b'*');

struct Page<T> {
    entries: Vec<T>,
    prefixes: Vec<String>,
    /// The last key or common prefix on a page that is not the last.
    next: Option<String>,
}

/// Takes one page from entries sorted by key. `after` is the last key or common prefix of the page before.
fn page<'a, T>(
    entries: impl Iterator<Item = (&'a str, T)>,
    prefix: &str,
    delimiter: Option<&str>,
    after: Option<&str>,
    max: usize,
) -> Page<T> {
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
    let skipped = after.filter(|after| delimiter.is_some_and(|delimiter| after.ends_with(delimiter)));
    let mut page = Page { entries: Vec::new(), prefixes: Vec::new(), next: None };
    let mut last: Option<String> = None;
    for (key, entry) in entries {
        if !key.starts_with(prefix) || skipped.is_some_and(|skipped| key.starts_with(skipped)) {
            continue;
        }
        let rest = &key[prefix.len()..];
        let common = delimiter.and_then(|d| rest.find(d).map(|at| &key[..prefix.len() + at + d.len()]));
        if let Some(common) = common
            && page.prefixes.last().is_some_and(|seen| seen == common)
        {
            continue;
        }
        if page.entries.len() + page.prefixes.len() >= max {
            page.next = last;
            return page;
        }
        match common {
            Some(common) => {
                page.prefixes.push(common.to_owned());
                last = Some(common.to_owned());
            }
            None => {
                page.entries.push(entry);
                last = Some(key.to_owned());
            }
        }
    }
    page
}

struct Encoder {
    url: bool,
}

impl Encoder {
    fn new(encoding: Option<&EncodingType>) -> Self {
        Self { url: encoding.is_some_and(|encoding| encoding.as_str() == EncodingType::URL) }
    }

    fn text(&self, text: &str) -> String {
        if self.url { utf8_percent_encode(text, &KEPT).to_string() } else { text.to_owned() }
    }

    fn option(&self, text: Option<&str>) -> Option<String> {
        text.map(|text| self.text(text))
    }

    fn kind(&self) -> Option<EncodingType> {
        self.url.then(|| EncodingType::from_static(EncodingType::URL))
    }

    fn prefixes(&self, prefixes: &[String]) -> Option<Vec<CommonPrefix>> {
        Some(prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(self.text(prefix)) }).collect())
    }
}

fn owner() -> Owner {
    Owner { display_name: None, id: Some(ACCOUNT_ID.to_owned()) }
}

fn count(max: Option<i32>) -> (i32, usize) {
    let max = max.unwrap_or(MAX_KEYS).clamp(0, MAX_KEYS);
    (max, usize::try_from(max).unwrap_or(0))
}

fn object(key: &str, version: &Version, encoder: &Encoder, with_owner: bool) -> Object {
    let checksum = version.checksum.as_ref();
    Object {
        key: Some(encoder.text(key)),
        e_tag: Some(etag(&version.etag)),
        size: i64::try_from(version.size_bytes).ok(),
        last_modified: Some(wire_time(version.last_modified)),
        storage_class: Some(ObjectStorageClass::from(version.attributes.storage_class.clone())),
        checksum_algorithm: checksum.map(|checksum| vec![ChecksumAlgorithm::from_static(checksum.algorithm.name())]),
        checksum_type: checksum.map(|checksum| ChecksumType::from_static(checksum.kind.name())),
        owner: with_owner.then(owner),
        restore_status: None,
    }
}

fn objects(
    store: &Store,
    name: &str,
    prefix: &str,
    delimiter: Option<&str>,
    after: Option<&str>,
    max: usize,
    show: impl Fn(&str, &Version) -> Object,
) -> S3Result<Page<Object>> {
    let state = store.lock();
    let bucket = bucket(&state, name)?;
    let start = after.filter(|after| *after > prefix).unwrap_or(prefix);
    let keys = bucket
        .objects
        .range::<str, _>((Bound::Included(start), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix));
    let current = keys.filter_map(|(key, versions)| {
        let version = versions.last().filter(|version| !version.delete_marker)?;
        after.is_none_or(|after| key.as_str() > after).then_some((key.as_str(), (key, version)))
    });
    let page = page(current, prefix, delimiter, after, max);
    let entries = page.entries.into_iter().map(|(key, version)| show(key, version)).collect();
    Ok(Page { entries, prefixes: page.prefixes, next: page.next })
}

pub(super) fn list_v2(store: &Store, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let encoder = Encoder::new(input.encoding_type.as_ref());
    let (max_keys, max) = count(input.max_keys);
    let invalid = || s3_error!(InvalidArgument, "The continuation token provided is incorrect");
    let continued = match &input.continuation_token {
        None => None,
        Some(token) => {
            let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
            Some(String::from_utf8(bytes).map_err(|_| invalid())?)
        }
    };
    let after = continued.as_deref().or(input.start_after.as_deref());
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let with_owner = input.fetch_owner.unwrap_or(false);
    let show = |key: &str, version: &Version| object(key, version, &encoder, with_owner);
    let page = objects(store, &input.bucket, prefix, input.delimiter.as_deref(), after, max, show)?;
    Ok(ListObjectsV2Output {
        key_count: i32::try_from(page.entries.len() + page.prefixes.len()).ok(),
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next.map(|next| URL_SAFE_NO_PAD.encode(next)),
        contents: Some(page.entries),
        common_prefixes: encoder.prefixes(&page.prefixes),
        max_keys: Some(max_keys),
        prefix: Some(encoder.text(prefix)),
        delimiter: encoder.option(input.delimiter.as_deref()),
        start_after: encoder.option(input.start_after.as_deref()),
        continuation_token: input.continuation_token,
        encoding_type: encoder.kind(),
        name: Some(input.bucket),
        ..Default::default()
    })
}

pub(super) fn list_v1(store: &Store, input: ListObjectsInput) -> S3Result<ListObjectsOutput> {
    let encoder = Encoder::new(input.encoding_type.as_ref());
    let (max_keys, max) = count(input.max_keys);
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let delimiter = input.delimiter.as_deref();
    let show = |key: &str, version: &Version| object(key, version, &encoder, true);
    let page = objects(store, &input.bucket, prefix, delimiter, input.marker.as_deref(), max, show)?;
    Ok(ListObjectsOutput {
        is_truncated: Some(page.next.is_some()),
        // Without a delimiter the caller goes on from the last key it was given.
        next_marker: page.next.as_deref().filter(|_| delimiter.is_some()).map(|next| encoder.text(next)),
        contents: Some(page.entries),
        common_prefixes: encoder.prefixes(&page.prefixes),
        max_keys: Some(max_keys),
        prefix: Some(encoder.text(prefix)),
        delimiter: encoder.option(delimiter),
        marker: Some(encoder.text(input.marker.as_deref().unwrap_or_default())),
        encoding_type: encoder.kind(),
        name: Some(input.bucket),
        ..Default::default()
    })
}

pub(super) fn list_versions(store: &Store, input: &ListObjectVersionsInput) -> S3Result<ListObjectVersionsOutput> {
    let encoder = Encoder::new(input.encoding_type.as_ref());
    let (max_keys, max) = count(input.max_keys);
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let (key_marker, id_marker) = (input.key_marker.as_deref(), input.version_id_marker.as_deref());
    let state = store.lock();
    let bucket = bucket(&state, &input.bucket)?;
    let all = bucket.objects.iter().flat_map(|(key, versions)| {
        // Inside the marker's key the page starts behind the marker's version.
        let behind = (key_marker == Some(key.as_str())).then_some(id_marker).flatten();
        let marked = behind.and_then(|id| versions.iter().rev().position(|version| version.id == id));
        let skipped = marked.map_or(0, |position| position + 1);
        versions.iter().rev().enumerate().skip(skipped).map(move |(age, version)| (key, age == 0, version))
    });
    let later = all.filter(|(key, ..)| match key_marker {
        None => true,
        Some(marker) => key.as_str() > marker || key.as_str() == marker && id_marker.is_some(),
    });
    let entries = later.map(|(key, latest, version)| (key.as_str(), (key, latest, version)));
    let page = page(entries, prefix, input.delimiter.as_deref(), key_marker, max);
    let last_id = page.entries.last().filter(|(key, ..)| page.next.as_ref() == Some(*key)).map(|(.., v)| v.id.clone());
    let (mut versions, mut delete_markers) = (Vec::new(), Vec::new());
    for (key, latest, version) in page.entries {
        let (key, is_latest) = (Some(encoder.text(key)), Some(latest));
        let (last_modified, version_id) = (Some(wire_time(version.last_modified)), Some(version.id.clone()));
        if version.delete_marker {
            delete_markers.push(DeleteMarkerEntry { is_latest, key, last_modified, owner: Some(owner()), version_id });
        } else {
            versions.push(ObjectVersion {
                is_latest,
                key,
                last_modified,
                version_id,
                e_tag: Some(etag(&version.etag)),
                size: i64::try_from(version.size_bytes).ok(),
                storage_class: Some(ObjectVersionStorageClass::from(version.attributes.storage_class.clone())),
                owner: Some(owner()),
                ..Default::default()
            });
        }
    }
    Ok(ListObjectVersionsOutput {
        is_truncated: Some(page.next.is_some()),
        next_key_marker: encoder.option(page.next.as_deref()),
        next_version_id_marker: last_id,
        versions: Some(versions),
        delete_markers: Some(delete_markers),
        common_prefixes: encoder.prefixes(&page.prefixes),
        max_keys: Some(max_keys),
        prefix: Some(encoder.text(prefix)),
        delimiter: encoder.option(input.delimiter.as_deref()),
        key_marker: Some(encoder.text(key_marker.unwrap_or_default())),
        version_id_marker: input.version_id_marker.clone(),
        encoding_type: encoder.kind(),
        name: Some(input.bucket.clone()),
        ..Default::default()
    })
}

pub(super) fn list_uploads(store: &Store, input: &ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
    let encoder = Encoder::new(input.encoding_type.as_ref());
    let (max_uploads, max) = count(input.max_uploads);
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let (key_marker, id_marker) = (input.key_marker.as_deref(), input.upload_id_marker.as_deref());
    let state = store.lock();
    let bucket = bucket(&state, &input.bucket)?;
    let later = bucket.uploads.iter().filter(|((key, id), _)| match (key_marker, id_marker) {
        (None, _) => true,
        (Some(marker), None) => key.as_str() > marker,
        (Some(marker), Some(behind)) => key.as_str() > marker || key == marker && id.as_str() > behind,
    });
    let entries = later.map(|((key, id), upload)| (key.as_str(), (key, id, upload)));
    let page = page(entries, prefix, input.delimiter.as_deref(), key_marker, max);
    let last_id =
        page.entries.last().filter(|(key, ..)| page.next.as_ref() == Some(*key)).map(|(_, id, _)| (*id).clone());
    let uploads = page.entries.into_iter().map(|(key, id, upload)| MultipartUpload {
        key: Some(encoder.text(key)),
        upload_id: Some(id.clone()),
        initiated: Some(wire_time(upload.initiated)),
        storage_class: Some(StorageClass::from(upload.attributes.storage_class.clone())),
        checksum_algorithm: upload.checksum.map(|(a, _)| ChecksumAlgorithm::from_static(a.name())),
        checksum_type: upload.checksum.map(|(_, kind)| ChecksumType::from_static(kind.name())),
        owner: Some(owner()),
        ..Default::default()
    });
    Ok(ListMultipartUploadsOutput {
        uploads: Some(uploads.collect()),
        is_truncated: Some(page.next.is_some()),
        next_key_marker: encoder.option(page.next.as_deref()),
        next_upload_id_marker: last_id,
        common_prefixes: encoder.prefixes(&page.prefixes),
        max_uploads: Some(max_uploads),
        prefix: Some(encoder.text(prefix)),
        delimiter: encoder.option(input.delimiter.as_deref()),
        key_marker: Some(encoder.text(key_marker.unwrap_or_default())),
        upload_id_marker: Some(id_marker.unwrap_or_default().to_owned()),
        encoding_type: encoder.kind(),
        bucket: Some(input.bucket.clone()),
        ..Default::default()
    })
}
