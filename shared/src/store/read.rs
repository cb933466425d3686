//! Reads large objects: a range as it arrives, taken up again where it broke; and an archive's table of contents.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;

use crate::archive::blocks::int_size;
use crate::archive::toc::{Toc, TocError, head_checksum};
use crate::fault::Fault;
use crate::store::{Store, StoreError};

/// So often in a row a range may break off without a byte having come.
const BROKEN_OFF_ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A connection on which nothing comes for this long counts as broken.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_HEAD_BYTES: u64 = 1 << 20;
/// The longest table of contents that is read: some hundred thousand entries.
const MAX_HEAD_BYTES: u64 = 512 << 20;

/// One range of one object, in the pieces in which it arrives.
pub struct RangeBody {
    store: Store,
    key: String,
    version_id: Option<String>,
    offset: u64,
    end: u64,
    body: Option<ByteStream>,
    /// The object's, once known: what comes after a break has to be of the same object.
    etag: Option<String>,
    broken_off: u32,
}

impl Store {
    /// `len` bytes from `offset`, of one version where it is given. Nothing is asked for before the first piece is.
    pub fn stream(&self, key: &str, version_id: Option<&str>, offset: u64, len: u64) -> RangeBody {
        RangeBody {
            store: self.clone(),
            key: key.to_owned(),
            version_id: version_id.map(str::to_owned),
            offset,
            end: offset.saturating_add(len),
            body: None,
            etag: None,
            broken_off: 0,
        }
    }
}

impl RangeBody {
    /// The next piece; `None` at the range's end.
    ///
    /// # Errors
    /// [`StoreError`] where the object is not to be had, is another one than at the beginning, or ends before the
    /// range does.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut pause = FIRST_PAUSE;
        while self.offset < self.end {
            let problem = match self.piece().await? {
                Ok(Some(piece)) => {
                    let wanted = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
                    let piece = piece.slice(..piece.len().min(wanted));
                    self.offset += piece.len() as u64;
                    if !piece.is_empty() {
                        self.broken_off = 0;
                        return Ok(Some(piece));
                    }
                    continue;
                }
                Ok(None) => format!("{} bytes are missing at its end", self.end - self.offset),
                Err(problem) => problem,
            };
            self.body = None;
            self.broken_off += 1;
            if self.broken_off == BROKEN_OFF_ATTEMPTS {
                return Err(StoreError::broken_off("GetObject", &self.store.config.bucket, &self.key, problem));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(None)
    }

    /// Outer error: not worth another attempt.
    async fn piece(&mut self) -> Result<Result<Option<Bytes>, String>, StoreError> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let body = self.open().await?;
                self.body.insert(body)
            }
        };
        Ok(match tokio::time::timeout(STALL_TIMEOUT, body.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) => Err(crate::fault::chain(&error)),
            Ok(None) => Ok(None),
            Err(_) => Err(format!("nothing came for {} s", STALL_TIMEOUT.as_secs())),
        })
    }

    async fn open(&mut self) -> Result<ByteStream, StoreError> {
        let range = format!("bytes={}-{}", self.offset, self.end - 1);
        let request = self.store.client.get_object().bucket(&self.store.config.bucket).key(&self.key);
        let request = request.set_version_id(self.version_id.clone()).range(range).set_if_match(self.etag.clone());
        let output = request.send().await.map_err(self.store.error("GetObject", &self.key))?;
        self.etag = output.e_tag.or_else(|| self.etag.take());
        Ok(output.body)
    }
}

/// An archive in the store: where it lies, and its table of contents.
pub struct ArchiveSource {
    pub store: Store,
    pub key: String,
    pub version_id: Option<String>,
    pub size_bytes: u64,
    pub toc: Toc,
    /// Where the first data block lies.
    pub data_start: u64,
    /// Of what lies before it.
    pub head_checksum: String,
    /// How many bytes an int has.
    pub int_size: u8,
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no object {key}")]
    Missing { key: String },
    #[error("{key} has {found} bytes, its manifest says {expected}")]
    Size { key: String, found: u64, expected: u64 },
    #[error("{key} is no archive of pg_dump -Fc: it {looks}")]
    NotAnArchive { key: String, looks: &'static str },
    #[error("the table of contents of {key} cannot be read")]
    Toc {
        key: String,
        #[source]
        source: TocError,
    },
}

impl ArchiveSource {
    /// Reads the table of contents in ranges that double until it is whole. `expected_bytes`: the size that the
    /// manifest gives.
    ///
    /// # Errors
    /// [`ArchiveError`]: the object is not there, has another size, or is not an archive.
    pub async fn open(
        store: &Store,
        key: &str,
        version_id: Option<&str>,
        expected_bytes: Option<u64>,
    ) -> Result<Self, ArchiveError> {
        let size_bytes = match expected_bytes {
            Some(size) if version_id.is_some() => size,
            _ => {
                let facts = store.head(key).await?.ok_or_else(|| ArchiveError::Missing { key: key.to_owned() })?;
                if let Some(expected) = expected_bytes.filter(|&expected| expected != facts.size_bytes) {
                    return Err(ArchiveError::Size { key: key.to_owned(), found: facts.size_bytes, expected });
                }
                facts.size_bytes
            }
        };
        let not_one = |looks| ArchiveError::NotAnArchive { key: key.to_owned(), looks };
        let unreadable = |source| ArchiveError::Toc { key: key.to_owned(), source };
        if size_bytes == 0 {
            return Err(not_one("is empty"));
        }
        let mut head = Vec::new();
        let mut wanted = FIRST_HEAD_BYTES;
        loop {
            let end = wanted.min(size_bytes).max(1);
            let mut body = store.stream(key, version_id, head.len() as u64, end - head.len() as u64);
            while let Some(piece) = body.next().await? {
                head.extend_from_slice(&piece);
            }
            match Toc::read(head.as_slice()) {
                Ok((toc, data_start)) => {
                    return Ok(Self {
                        store: store.clone(),
                        key: key.to_owned(),
                        version_id: version_id.map(str::to_owned),
                        size_bytes,
                        toc,
                        data_start,
                        int_size: int_size(&head).unwrap_or_default(),
                        head_checksum: head_checksum(&head[..usize::try_from(data_start).unwrap_or(0).min(head.len())]),
                    });
                }
                Err(error) if error.is_truncated() && end < size_bytes && wanted < MAX_HEAD_BYTES => wanted *= 2,
                Err(TocError::NotAnArchive) => return Err(not_one(looks_like(&head))),
                Err(error) => return Err(unreadable(error)),
            }
        }
    }

    /// A range of the archive.
    pub fn stream(&self, offset: u64, len: u64) -> RangeBody {
        self.store.stream(&self.key, self.version_id.as_deref(), offset, len)
    }
}

/// What people have instead of an archive.
fn looks_like(head: &[u8]) -> &'static str {
    let begins = |magic: &[u8]| head.starts_with(magic);
    let mentions = |words: &[u8]| head[..head.len().min(4096)].windows(words.len()).any(|found| found == words);
    if begins(&[0x1f, 0x8b]) {
        "is compressed with gzip as a whole; gunzip it first"
    } else if begins(&[0x28, 0xb5, 0x2f, 0xfd]) || begins(b"BZh") || begins(&[0xfd, b'7', b'z']) || begins(b"PK") {
        "is compressed as a whole; decompress it first"
    } else if head.get(257..262) == Some(b"ustar") || begins(b"toc.dat") {
        "is a tar file, which pg_restore reads if pg_dump wrote it (-Ft), or once it is unpacked (-Fd)"
    } else if begins(b"--") || mentions(b"PostgreSQL database dump") || mentions(b"CREATE ") || mentions(b"SET ") {
        "is plain SQL, which psql reads"
    } else {
        "does not begin with PGDMP"
    }
}

impl ArchiveError {
    /// Of an object that somebody has brought: what is not an archive is no damage.
    pub fn of_import(self) -> Fault {
        let foreign = match &self {
            Self::NotAnArchive { .. } => true,
            Self::Toc { source, .. } => {
                matches!(source, TocError::UnknownVersion { .. } | TocError::NotCustomFormat { .. })
            }
            _ => false,
        };
        if foreign {
            return Fault::from_error("import-not-an-archive", &self)
                .hint("an import is what pg_dump -Fc of PostgreSQL 13 to 18 writes");
        }
        self.into()
    }
}

impl From<ArchiveError> for Fault {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Store(error) => error.into(),
            ArchiveError::Missing { .. } => Self::from_error("backup-object-missing", &error),
            ArchiveError::Size { .. } => Self::from_error("backup-damaged", &error),
            ArchiveError::NotAnArchive { .. } | ArchiveError::Toc { .. } => Self::from_error("backup-damaged", &error),
        }
    }
}
