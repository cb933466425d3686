//! The client of one bucket: reads, conditional writes of small objects.

use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, ServerSideEncryption};
use bytes::Bytes;

use crate::config::{ObjectChecksum, StoreConfig};
use crate::domain::ObjectKey;
use crate::secret::{self, SecretError};
use crate::store::StoreError;

const ATTEMPTS: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A part of 8 MiB at 1 Mbit/s takes 67 s; slower than that the attempt counts as hung.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(90);
/// The same for small objects and for requests without a body: several attempts fit into the life of a lease.
const SMALL_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a conditional write is tried again that met another one under way; doubled each time.
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);
const CONFLICT_ATTEMPTS: u32 = 5;
/// A body that breaks off is read anew so often; the SDK retries only up to the response's head.
const BODY_ATTEMPTS: u32 = 3;

#[derive(Clone)]
pub struct Store {
    pub(super) client: aws_sdk_s3::Client,
    pub(super) config: StoreConfig,
}

/// What a conditional write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutOutcome {
    Written {
        etag: String,
    },
    /// The condition did not hold; nothing was written.
    Refused,
}

/// What HEAD tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFacts {
    pub size_bytes: u64,
    pub etag: String,
    pub version_id: Option<String>,
    /// Base64, of the configured algorithm.
    pub checksum: Option<String>,
}

/// The condition of a write.
#[derive(Debug, Clone, Copy)]
pub enum Condition<'a> {
    /// Only if there is no such object.
    Absent,
    /// Only over exactly this version.
    Etag(&'a str),
}

impl Store {
    /// Connects to the configured bucket.
    ///
    /// # Errors
    /// [`SecretError`] where the store's own credentials cannot be read.
    pub async fn connect(aws: &aws_config::SdkConfig, config: StoreConfig) -> Result<Self, SecretError> {
        let credentials = match &config.credentials_secret_arn {
            None => None,
            Some(arn) => {
                let secret = secret::read_json(arn, aws).await?;
                let id = secret::text_field(&secret, arn, "access_key_id")?;
                let key = secret::text_field(&secret, arn, "secret_access_key")?;
                Some(aws_sdk_s3::config::Credentials::new(id, key, None, None, "store-secret"))
            }
        };
        let mut builder = aws_sdk_s3::config::Builder::from(aws)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .build(),
            )
            .force_path_style(config.force_path_style);
        if let Some(url) = &config.endpoint_url {
            builder = builder.endpoint_url(url);
        }
        if let Some(region) = &config.region {
            builder = builder.region(aws_sdk_s3::config::Region::new(region.clone()));
        }
        if config.checksum == ObjectChecksum::None {
            builder = builder
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        if let Some(credentials) = credentials {
            builder = builder.credentials_provider(credentials);
        }
        Ok(Self { client: aws_sdk_s3::Client::from_conf(builder.build()), config })
    }

    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    pub fn key(&self, key: &ObjectKey) -> String {
        key.render(&self.config.prefix)
    }

    /// `s3://bucket/key`.
    pub fn uri(&self, key: &ObjectKey) -> String {
        format!("s3://{}/{}", self.config.bucket, self.key(key))
    }

    pub(super) fn error<E>(
        &self,
        operation: &'static str,
        key: &str,
    ) -> impl FnOnce(aws_sdk_s3::error::SdkError<E>) -> StoreError
    where
        E: std::error::Error + aws_sdk_s3::error::ProvideErrorMetadata + Send + Sync + 'static,
    {
        move |error| StoreError::from_sdk(operation, &self.config.bucket, key, error)
    }

    /// An attempt's time limit for one request, in place of the client's.
    pub(super) fn attempt_timeout(limit: Duration) -> aws_sdk_s3::config::Builder {
        aws_sdk_s3::config::Builder::new().timeout_config(
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(limit).build(),
        )
    }

    pub(super) fn small() -> aws_sdk_s3::config::Builder {
        Self::attempt_timeout(SMALL_ATTEMPT_TIMEOUT)
    }

    /// The encryption to ask for; `None` leaves it to the bucket.
    pub(super) fn encryption(&self) -> Option<ServerSideEncryption> {
        self.config.kms_key_id.as_ref().map(|_| ServerSideEncryption::AwsKms)
    }

    /// Writes a small object under a condition. Of writers that race, one wins.
    ///
    /// A write whose answer was lost is told from a refusal by its content: no two runs may write the same.
    pub async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: Condition<'_>,
    ) -> Result<PutOutcome, StoreError> {
        let path = self.key(key);
        let mut pause = CONFLICT_PAUSE;
        for attempt in 1.. {
            let request = self
                .client
                .put_object()
                .bucket(&self.config.bucket)
                .key(&path)
                .content_type(key.content_type())
                .set_server_side_encryption(self.encryption())
                .set_ssekms_key_id(self.config.kms_key_id.clone())
                .set_checksum_algorithm(self.config.checksum.sdk())
                .body(ByteStream::from(body.clone()));
            let request = match condition {
                Condition::Absent => request.if_none_match("*"),
                Condition::Etag(etag) => request.if_match(etag),
            };
            let sent = request.customize().config_override(Self::small()).send().await;
            match sent.map_err(self.error("PutObject", &path)) {
                Ok(output) => return Ok(PutOutcome::Written { etag: output.e_tag.unwrap_or_default() }),
                Err(error) if error.is_precondition_failed() => {
                    return Ok(match self.get_present(key).await? {
                        Some((present, etag)) if present == body => PutOutcome::Written { etag },
                        _ => PutOutcome::Refused,
                    });
                }
                // Over a version that is gone altogether.
                Err(error) if error.is_absent() && matches!(condition, Condition::Etag(_)) => break,
                Err(error) if error.is_conflict() && attempt < CONFLICT_ATTEMPTS => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(PutOutcome::Refused)
    }

    /// A small object's content and ETag; `None` where there is none, or the caller may not know.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<(Bytes, String)>, StoreError> {
        match self.read(&self.key(key), None, None).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_absent_or_hidden() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same for an object that has just been met: if it cannot be read, that is an error.
    pub async fn get_present(&self, key: &ObjectKey) -> Result<Option<(Bytes, String)>, StoreError> {
        match self.read(&self.key(key), None, None).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `len` bytes from `offset`, of one version where it is given.
    pub async fn get_range(
        &self,
        key: &str,
        version_id: Option<&str>,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, StoreError> {
        let range = format!("bytes={offset}-{}", offset + len.max(1) - 1);
        self.read(key, version_id, Some(range)).await.map(|(body, _)| body)
    }

    /// Content and ETag.
    async fn read(
        &self,
        key: &str,
        version_id: Option<&str>,
        range: Option<String>,
    ) -> Result<(Bytes, String), StoreError> {
        let mut attempt = 1;
        loop {
            let request = self.client.get_object().bucket(&self.config.bucket).key(key);
            let request = request.set_version_id(version_id.map(str::to_owned)).set_range(range.clone());
            let sent = request.customize().config_override(Self::small()).send().await;
            let output = sent.map_err(self.error("GetObject", key))?;
            let etag = output.e_tag.unwrap_or_default();
            let problem = match tokio::time::timeout(ATTEMPT_TIMEOUT, output.body.collect()).await {
                Ok(Ok(body)) => return Ok((body.into_bytes(), etag)),
                Ok(Err(error)) => crate::fault::chain(&error),
                Err(_) => format!("no end of the body within {} s", ATTEMPT_TIMEOUT.as_secs()),
            };
            if attempt == BODY_ATTEMPTS {
                return Err(StoreError::broken_off("GetObject", &self.config.bucket, key, problem));
            }
            attempt += 1;
        }
    }

    /// `None` where there is no such object, or the caller may not know.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectFacts>, StoreError> {
        match self.head_present(key).await {
            Err(error) if error.is_absent_or_hidden() => Ok(None),
            facts => facts,
        }
    }

    /// The same for an object that has just been met: if it may not be looked at, that is an error.
    pub async fn head_present(&self, key: &str) -> Result<Option<ObjectFacts>, StoreError> {
        let mut request = self.client.head_object().bucket(&self.config.bucket).key(key);
        if self.config.checksum != ObjectChecksum::None {
            request = request.checksum_mode(ChecksumMode::Enabled);
        }
        let sent = request.customize().config_override(Self::small()).send().await;
        let output = match sent.map_err(self.error("HeadObject", key)) {
            Ok(output) => output,
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error),
        };
        let checksum = match self.config.checksum {
            ObjectChecksum::Crc64Nvme => output.checksum_crc64_nvme,
            ObjectChecksum::Crc32 => output.checksum_crc32,
            ObjectChecksum::None => None,
        };
        Ok(Some(ObjectFacts {
            size_bytes: output.content_length.unwrap_or_default().unsigned_abs(),
            etag: output.e_tag.unwrap_or_default(),
            version_id: output.version_id,
            checksum,
        }))
    }
}
