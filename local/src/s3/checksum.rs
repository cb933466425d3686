//! Checksums of parts and objects: which one a client claims, what was received, and full-object values by combination.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::{CrcAlgorithm, Digest};
use http::HeaderMap;
use s3s::crypto::{Checksum as _, Md5, Sha1, Sha256};
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::refusal::refuse;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(super) const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// The name in `x-amz-checksum-algorithm`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    pub(super) fn parse(name: &str) -> S3Result<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            s3_error!(InvalidRequest, "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
        })
    }

    pub(super) fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    fn size_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Whether a multipart object can have this checksum over all its bytes ("Checking object integrity in Amazon S3").
    pub(super) fn allows(self, kind: Kind) -> bool {
        match kind {
            Kind::FullObject => self.crc().is_some(),
            Kind::Composite => self != Self::Crc64Nvme,
        }
    }

    pub(super) fn default_kind(self) -> Kind {
        if self == Self::Crc64Nvme { Kind::FullObject } else { Kind::Composite }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    FullObject,
    Composite,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FullObject => "FULL_OBJECT",
            Self::Composite => "COMPOSITE",
        }
    }

    pub(super) fn parse(name: &str) -> S3Result<Self> {
        match name {
            "FULL_OBJECT" => Ok(Self::FullObject),
            "COMPOSITE" => Ok(Self::Composite),
            _ => Err(s3_error!(InvalidRequest, "Value for x-amz-checksum-type header is invalid.")),
        }
    }
}

/// The checksum of a stored object, as `x-amz-checksum-*` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ObjectChecksum {
    pub(super) algorithm: Algorithm,
    pub(super) kind: Kind,
    pub(super) value: String,
}

impl ObjectChecksum {
    pub(super) fn value_of(&self, algorithm: Algorithm) -> Option<String> {
        (self.algorithm == algorithm).then(|| self.value.clone())
    }
}

/// A checksum value of one run of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) algorithm: Algorithm,
    pub(super) bytes: Vec<u8>,
}

impl Sum {
    pub(super) fn parse(algorithm: Algorithm, text: &str) -> S3Result<Self> {
        match BASE64.decode(text) {
            Ok(bytes) if bytes.len() == algorithm.size_bytes() => Ok(Self { algorithm, bytes }),
            _ => Err(s3_error!(InvalidRequest, "Value for {} header is invalid.", algorithm.header())),
        }
    }

    pub(super) fn base64(&self) -> String {
        BASE64.encode(&self.bytes)
    }

    fn number(&self) -> u64 {
        self.bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    pub(super) fn expect(&self, computed: &Sum) -> S3Result<()> {
        if self == computed {
            return Ok(());
        }
        let name = self.algorithm.name();
        Err(s3_error!(BadDigest, "The {name} you specified did not match the calculated checksum."))
    }
}

/// What the client says about the body it sends: at most one checksum, in a header or announced as a trailer.
#[derive(Debug)]
pub(super) struct Claim {
    header: Option<Sum>,
    trailer: Option<Algorithm>,
    md5: Option<Vec<u8>>,
}

impl Claim {
    pub(super) fn from_headers(headers: &HeaderMap) -> S3Result<Self> {
        let mut sums = Vec::new();
        for algorithm in Algorithm::ALL {
            if let Some(value) = headers.get(algorithm.header()) {
                sums.push(Sum::parse(algorithm, value.to_str().unwrap_or_default())?);
            }
        }
        let announced = headers.get("x-amz-trailer").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let trailer = Algorithm::ALL
            .into_iter()
            .find(|a| announced.split(',').any(|name| name.trim().eq_ignore_ascii_case(a.header())));
        if sums.len() + usize::from(trailer.is_some()) > 1 {
            return Err(s3_error!(
                InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
            ));
        }
        let md5 = match headers.get("content-md5") {
            None => None,
            Some(value) => match BASE64.decode(value.as_bytes()) {
                Ok(bytes) if bytes.len() == 16 => Some(bytes),
                _ => return Err(s3_error!(InvalidDigest, "The Content-MD5 you specified is not valid.")),
            },
        };
        Ok(Self { header: sums.pop(), trailer, md5 })
    }

    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        self.header.as_ref().map(|sum| sum.algorithm).or(self.trailer)
    }

    pub(super) fn has_digest(&self) -> bool {
        self.algorithm().is_some() || self.md5.is_some()
    }

    /// The claimed value; a trailer is known only after the body.
    pub(super) fn resolve(&self, trailers: Option<&s3s::TrailingHeaders>) -> S3Result<Option<Sum>> {
        let Some(algorithm) = self.trailer else { return Ok(self.header.clone()) };
        let sent = trailers.and_then(|trailers| trailers.read(|map| map.get(algorithm.header()).cloned()).flatten());
        match sent.as_ref().and_then(|value| value.to_str().ok()) {
            Some(text) => Sum::parse(algorithm, text.trim()).map(Some),
            None => Err(refuse(
                400,
                "MalformedTrailerError",
                format_args!("The trailer {} was announced and not sent", algorithm.header()),
            )),
        }
    }

    pub(super) fn check(&self, trailers: Option<&s3s::TrailingHeaders>, digest: &Digests) -> S3Result<()> {
        if let (Some(claimed), Some(computed)) = (&self.md5, &digest.md5)
            && claimed != computed
        {
            return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received."));
        }
        if let Some(claimed) = self.resolve(trailers)?
            && let Some(computed) = digest.get(claimed.algorithm)
        {
            claimed.expect(computed)?;
        }
        Ok(())
    }
}

/// Hashes a body while it arrives. CRC64NVME always runs: it makes the ETag, and is what S3 computes unasked.
pub(super) struct Hashers {
    crc64: Digest,
    wanted: Option<(Algorithm, Hasher)>,
    md5: Option<Md5>,
}

enum Hasher {
    Crc(Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hashers {
    pub(super) fn new(wanted: Option<Algorithm>, claim: Option<&Claim>) -> Self {
        let wanted = wanted.filter(|algorithm| *algorithm != Algorithm::Crc64Nvme).map(|a| (a, Hasher::new(a)));
        let md5 = claim.and_then(|claim| claim.md5.as_ref()).map(|_| Md5::new());
        Self { crc64: Digest::new(CrcAlgorithm::Crc64Nvme), wanted, md5 }
    }

    pub(super) fn update(&mut self, data: &[u8]) {
        self.crc64.update(data);
        if let Some((_, hasher)) = &mut self.wanted {
            hasher.update(data);
        }
        if let Some(md5) = &mut self.md5 {
            md5.update(data);
        }
    }

    pub(super) fn finish(self) -> Digests {
        let crc64 = Sum { algorithm: Algorithm::Crc64Nvme, bytes: self.crc64.finalize().to_be_bytes().to_vec() };
        let wanted = self.wanted.map(|(algorithm, hasher)| Sum { algorithm, bytes: hasher.finish(algorithm) });
        Digests { crc64, wanted, md5: self.md5.map(|md5| md5.finalize().to_vec()) }
    }
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match (algorithm, algorithm.crc()) {
            (_, Some(crc)) => Self::Crc(Digest::new(crc)),
            (Algorithm::Sha1, None) => Self::Sha1(Sha1::new()),
            (_, None) => Self::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Crc(crc) => crc.update(data),
            Self::Sha1(sha1) => sha1.update(data),
            Self::Sha256(sha256) => sha256.update(data),
        }
    }

    fn finish(self, algorithm: Algorithm) -> Vec<u8> {
        match self {
            Self::Crc(crc) => crc_bytes(algorithm, crc.finalize()),
            Self::Sha1(sha1) => sha1.finalize().to_vec(),
            Self::Sha256(sha256) => sha256.finalize().to_vec(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Digests {
    pub(super) crc64: Sum,
    wanted: Option<Sum>,
    md5: Option<Vec<u8>>,
}

impl Digests {
    pub(super) fn get(&self, algorithm: Algorithm) -> Option<&Sum> {
        self.wanted
            .as_ref()
            .filter(|sum| sum.algorithm == algorithm)
            .or_else(|| (algorithm == Algorithm::Crc64Nvme).then_some(&self.crc64))
    }
}

/// The CRC of the concatenation, from each run's own CRC and its length in bytes.
pub(super) fn combine<'a>(algorithm: Algorithm, parts: impl Iterator<Item = (&'a Sum, u64)>) -> Option<Sum> {
    let crc = algorithm.crc()?;
    let whole = parts.fold(None, |whole, (sum, size_bytes)| match whole {
        None => Some(sum.number()),
        Some(left) => Some(crc_fast::checksum_combine(crc, left, sum.number(), size_bytes)),
    })?;
    Some(Sum { algorithm, bytes: crc_bytes(algorithm, whole) })
}

/// The checksum of the parts' checksums, which S3 shows with `-{parts}` appended.
pub(super) fn composite<'a>(algorithm: Algorithm, parts: impl Iterator<Item = &'a Sum>) -> String {
    let mut hasher = Hasher::new(algorithm);
    let mut count = 0;
    for sum in parts {
        hasher.update(&sum.bytes);
        count += 1;
    }
    format!("{}-{count}", BASE64.encode(hasher.finish(algorithm)))
}

fn crc_bytes(algorithm: Algorithm, value: u64) -> Vec<u8> {
    value.to_be_bytes()[8 - algorithm.size_bytes()..].to_vec()
}

/// The five `checksum_*` fields of an input as one claim; more than one is refused as S3 does.
macro_rules! claimed_sum {
    ($input:expr) => {
        $crate::s3::checksum::single_sum([
            ($crate::s3::checksum::Algorithm::Crc32, $input.checksum_crc32.as_deref()),
            ($crate::s3::checksum::Algorithm::Crc32c, $input.checksum_crc32c.as_deref()),
            ($crate::s3::checksum::Algorithm::Crc64Nvme, $input.checksum_crc64nvme.as_deref()),
            ($crate::s3::checksum::Algorithm::Sha1, $input.checksum_sha1.as_deref()),
            ($crate::s3::checksum::Algorithm::Sha256, $input.checksum_sha256.as_deref()),
        ])
    };
}
pub(super) use claimed_sum;

pub(super) fn single_sum(fields: [(Algorithm, Option<&str>); 5]) -> S3Result<Option<(Algorithm, String)>> {
    let mut given = fields.into_iter().filter_map(|(algorithm, value)| value.map(|v| (algorithm, v.to_owned())));
    let first = given.next();
    if given.next().is_some() {
        return Err(s3_error!(
            InvalidRequest,
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
        ));
    }
    Ok(first)
}

/// Sets the one `checksum_*` field of an output that `$value_of` has a value for.
macro_rules! show_sum {
    ($output:expr, $value_of:expr) => {{
        let value_of = $value_of;
        $output.checksum_crc32 = value_of($crate::s3::checksum::Algorithm::Crc32);
        $output.checksum_crc32c = value_of($crate::s3::checksum::Algorithm::Crc32c);
        $output.checksum_crc64nvme = value_of($crate::s3::checksum::Algorithm::Crc64Nvme);
        $output.checksum_sha1 = value_of($crate::s3::checksum::Algorithm::Sha1);
        $output.checksum_sha256 = value_of($crate::s3::checksum::Algorithm::Sha256);
    }};
}
pub(super) use show_sum;
