//! Stored bytes: a body is kept as it arrived (in memory, in a file, or not at all) and objects share it by reference.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use http_body_util::StreamBody;
use hyper::body::Frame;
use s3s::dto::StreamingBlob;
use s3s::{S3Result, s3_error};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::checksum::{Digests, Hashers};
use super::refusal::refuse;

const FILE_CHUNK_BYTES: u64 = 256 * 1024;
const SMALL_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Blob {
    pub(super) size_bytes: u64,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// The chunks as the connection delivered them.
    Memory(Vec<Bytes>),
    File(StoredFile),
    Dropped,
}

/// A content file that goes away with the last object that uses it, but not with the server.
#[derive(Debug)]
pub(super) struct StoredFile {
    path: PathBuf,
    closing: Arc<AtomicBool>,
}

impl Drop for StoredFile {
    fn drop(&mut self) {
        if !self.closing.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Blob {
    pub(super) fn from_file(path: PathBuf, size_bytes: u64, closing: Arc<AtomicBool>) -> Self {
        Self { size_bytes, data: Data::File(StoredFile { path, closing }) }
    }

    /// The content file's name, which metadata on disk refers to. None in memory.
    pub(super) fn file_name(&self) -> Option<String> {
        match &self.data {
            Data::File(file) => file.path.file_name().map(|name| name.to_string_lossy().into_owned()),
            Data::Memory(_) | Data::Dropped => None,
        }
    }
}

/// Where the next body goes.
pub(super) enum Sink {
    Memory,
    File {
        path: PathBuf,
        closing: Arc<AtomicBool>,
    },
    /// Counts and drops; no checksum is computed.
    Discard,
}

pub(super) struct Received {
    pub(super) blob: Arc<Blob>,
    /// None for a discarded body.
    pub(super) digests: Option<Digests>,
}

/// Reads a request body to its end. The file of a body that breaks off is removed.
pub(super) async fn receive(body: Option<StreamingBlob>, sink: Sink, mut hashers: Hashers) -> S3Result<Received> {
    let mut size_bytes = 0;
    let mut chunks = Vec::new();
    let mut open = match &sink {
        Sink::File { path, closing } => {
            let stored = StoredFile { path: path.clone(), closing: Arc::clone(closing) };
            Some((File::create(path).await.map_err(|e| s3_error!(e, InternalError))?, stored))
        }
        Sink::Memory | Sink::Discard => None,
    };
    let discard = matches!(sink, Sink::Discard);
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(broken_body)?;
            size_bytes += chunk.len() as u64;
            if discard {
                continue;
            }
            hashers.update(&chunk);
            match &mut open {
                Some((file, _)) => file.write_all(&chunk).await.map_err(|e| s3_error!(e, InternalError))?,
                None => chunks.push(chunk),
            }
        }
    }
    let data = match open {
        Some((mut file, stored)) => {
            file.flush().await.map_err(|e| s3_error!(e, InternalError))?;
            Data::File(stored)
        }
        None if discard => Data::Dropped,
        None => Data::Memory(compact(chunks, size_bytes)),
    };
    let blob = Arc::new(Blob { size_bytes, data });
    Ok(Received { blob, digests: (!discard).then(|| hashers.finish()) })
}

/// A chunk is a slice of the connection's read buffer: a small body kept as it came would hold on to all of it.
fn compact(chunks: Vec<Bytes>, size_bytes: u64) -> Vec<Bytes> {
    if size_bytes <= SMALL_BYTES { vec![Bytes::from(chunks.concat())] } else { chunks }
}

/// The stream's errors are the library's private types: their text is all there is to tell them apart.
fn broken_body(source: s3s::StdError) -> s3s::S3Error {
    let text = format!("{source:?}");
    if text.contains("Sha256Mismatch") {
        refuse(
            400,
            "XAmzContentSHA256Mismatch",
            format_args!("The provided 'x-amz-content-sha256' header does not match what was computed."),
        )
    } else if text.contains("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch, "A chunk's signature does not match")
    } else {
        let mut error = s3_error!(IncompleteBody, "The request body terminated unexpectedly: {text}");
        error.set_source(source);
        error
    }
}

/// A run of bytes inside one blob.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) blob: Arc<Blob>,
    pub(super) offset: u64,
    pub(super) size_bytes: u64,
}

/// An object's bytes as runs of blobs: completing, copying and slicing move references only.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) segments: Vec<Segment>,
}

impl Content {
    pub(super) fn whole(blob: Arc<Blob>) -> Self {
        let size_bytes = blob.size_bytes;
        Self { segments: vec![Segment { blob, offset: 0, size_bytes }] }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size_bytes).sum()
    }

    pub(super) fn slice(&self, range: Range<u64>) -> Self {
        let mut start = 0;
        let mut segments = Vec::new();
        for segment in &self.segments {
            let end = start + segment.size_bytes;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                let offset = segment.offset + (from - start);
                segments.push(Segment { blob: Arc::clone(&segment.blob), offset, size_bytes: to - from });
            }
            start = end;
        }
        Self { segments }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.segments.iter().all(|segment| !matches!(segment.blob.data, Data::Dropped))
    }

    pub(super) fn stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        stream::iter(self.segments).flat_map(Segment::stream)
    }

    pub(super) fn into_body(self) -> StreamingBlob {
        let frames = self.stream().map_ok(Frame::data);
        StreamingBlob::from(s3s::Body::http_body_unsync(StreamBody::new(frames)))
    }

    pub(super) async fn hash(&self, mut hashers: Hashers) -> S3Result<Digests> {
        let mut stream = std::pin::pin!(self.clone().stream());
        while let Some(chunk) = stream.next().await {
            hashers.update(&chunk.map_err(|e| s3_error!(e, InternalError))?);
        }
        Ok(hashers.finish())
    }
}

impl Segment {
    fn stream(self) -> stream::BoxStream<'static, std::io::Result<Bytes>> {
        match &self.blob.data {
            Data::Memory(chunks) => {
                let chunks = cut(chunks, self.offset, self.size_bytes);
                stream::iter(chunks.into_iter().map(Ok)).boxed()
            }
            Data::File(file) => {
                let path = file.path.clone();
                stream::once(read_from(path, self)).try_flatten().boxed()
            }
            Data::Dropped => {
                stream::once(async { Err(std::io::Error::other("the body of this part was not kept")) }).boxed()
            }
        }
    }
}

fn cut(chunks: &[Bytes], offset: u64, size_bytes: u64) -> Vec<Bytes> {
    let (mut start, end) = (0u64, offset + size_bytes);
    let mut taken = Vec::new();
    for chunk in chunks {
        let chunk_end = start + chunk.len() as u64;
        let (from, to) = (offset.max(start), end.min(chunk_end));
        if from < to {
            // Both are inside this chunk, whose length is a usize.
            taken.push(chunk.slice((from - start) as usize..(to - start) as usize));
        }
        start = chunk_end;
    }
    taken
}

/// The segment travels along, so that its file outlives a deletion of the object during the read.
async fn read_from(
    path: PathBuf,
    segment: Segment,
) -> std::io::Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
    let file = open(&path, segment.offset).await?;
    let first = segment.size_bytes;
    Ok(stream::try_unfold((file, first, segment), |(mut file, left, segment)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut buffer = vec![0; left.min(FILE_CHUNK_BYTES) as usize];
        file.read_exact(&mut buffer).await?;
        let left = left - buffer.len() as u64;
        Ok(Some((Bytes::from(buffer), (file, left, segment))))
    }))
}

async fn open(path: &Path, offset: u64) -> std::io::Result<File> {
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    Ok(file)
}
