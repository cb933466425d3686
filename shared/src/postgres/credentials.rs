//! Turns the configured source of credentials into a [`Target`]: a URL, a Secrets Manager secret, or an IAM token.

use std::time::{Duration, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use serde_json::Value;

use crate::config::{DatabaseAuth, DatabaseConfig};
use crate::fault::Fault;
use crate::postgres::connect::{ConnectError, Target, default_ssl_mode};
use crate::secret::{self, Secret, SecretError};

/// How long an IAM database token can be used to connect (Amazon RDS User Guide, "IAM database authentication").
const TOKEN_LIFETIME: Duration = Duration::from_secs(900);

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("no AWS credentials to sign a database token with")]
    NoAwsCredentials(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the database token cannot be signed")]
    Signing(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Resolves secrets; nothing is cached, so that a rotated password is used from the next invocation on.
pub async fn resolve(config: &DatabaseConfig, aws: &aws_config::SdkConfig) -> Result<Target, CredentialsError> {
    let mut target = match &config.auth {
        DatabaseAuth::Url(url) => Target::from_url(url.expose())?,
        DatabaseAuth::Secret { arn } => from_secret(config, arn, aws).await?,
        DatabaseAuth::Iam { user } => {
            let host = config.host.clone().unwrap_or_default();
            let port = config.port.unwrap_or(5432);
            let token = iam_token(&host, port, user, aws).await?;
            Target {
                ssl_mode: default_ssl_mode(&host),
                host,
                port,
                user: user.clone(),
                database: config.name.clone().unwrap_or_else(|| "postgres".to_owned()),
                password: Some(token),
                ca_bundle: None,
            }
        }
    };
    if let Some(ssl_mode) = config.ssl_mode {
        target.ssl_mode = ssl_mode;
    }
    if target.ca_bundle.is_none() {
        target.ca_bundle.clone_from(&config.ca_bundle);
    }
    Ok(target)
}

/// RDS's secret: managed secrets hold only user and password, those made by hand also where to connect.
async fn from_secret(
    config: &DatabaseConfig,
    arn: &str,
    aws: &aws_config::SdkConfig,
) -> Result<Target, CredentialsError> {
    let secret = secret::read_json(arn, aws).await?;
    let optional = |field: &str| secret.get(field).and_then(Value::as_str).map(str::to_owned);
    let malformed = |problem: &str| SecretError::Malformed { arn: arn.to_owned(), problem: problem.to_owned() };
    let port: Option<u16> = match secret.get("port") {
        None => None,
        Some(Value::String(text)) => Some(text.parse().map_err(|_| malformed("its port is not a number"))?),
        Some(value) => {
            let port = value.as_u64().and_then(|port| port.try_into().ok());
            Some(port.ok_or_else(|| malformed("its port is not a number"))?)
        }
    };
    let host = config.host.clone().or_else(|| optional("host"));
    let host = host.ok_or_else(|| malformed("it names no host, and DATABASE_HOST is not set"))?;
    Ok(Target {
        ssl_mode: default_ssl_mode(&host),
        host,
        port: config.port.or(port).unwrap_or(5432),
        user: secret::text_field(&secret, arn, "username")?,
        database: config.name.clone().or_else(|| optional("dbname")).unwrap_or_else(|| "postgres".to_owned()),
        password: Some(Secret::new(secret::text_field(&secret, arn, "password")?)),
        ca_bundle: None,
    })
}

/// A presigned `rds-db:connect` request, which serves as the password.
async fn iam_token(host: &str, port: u16, user: &str, aws: &aws_config::SdkConfig) -> Result<Secret, CredentialsError> {
    let no_credentials = |source: Box<dyn std::error::Error + Send + Sync>| CredentialsError::NoAwsCredentials(source);
    let provider = aws.credentials_provider().ok_or_else(|| no_credentials("no provider is configured".into()))?;
    let credentials = provider.provide_credentials().await.map_err(|error| no_credentials(Box::new(error)))?;
    let region = aws.region().map(ToString::to_string).unwrap_or_default();
    sign_token(host, port, user, &region, credentials, SystemTime::now())
}

fn sign_token(
    host: &str,
    port: u16,
    user: &str,
    region: &str,
    credentials: aws_credential_types::Credentials,
    now: SystemTime,
) -> Result<Secret, CredentialsError> {
    fn signing(error: impl std::error::Error + Send + Sync + 'static) -> CredentialsError {
        CredentialsError::Signing(Box::new(error))
    }
    let identity = credentials.into();
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(TOKEN_LIFETIME);
    settings.signature_location = SignatureLocation::QueryParams;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()
        .map_err(signing)?;
    let user = percent_encoding::utf8_percent_encode(user, percent_encoding::NON_ALPHANUMERIC);
    let url = format!("https://{host}:{port}/?Action=connect&DBUser={user}");
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::empty()).map_err(signing)?;
    let (instructions, _) = sign(request, &params.into()).map_err(signing)?.into_parts();
    let mut signed = http::Request::builder().uri(&url).body(()).map_err(signing)?;
    instructions.apply_to_request_http1x(&mut signed);
    let token = signed.uri().to_string();
    Ok(Secret::new(token.trim_start_matches("https://")))
}

impl From<CredentialsError> for Fault {
    fn from(error: CredentialsError) -> Self {
        match error {
            CredentialsError::Connect(error) => error.into(),
            CredentialsError::Secret(error) => error.into(),
            other => Self::from_error("database-credentials", &other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_presigned_url_without_its_scheme() {
        let credentials = aws_credential_types::Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_516_200);
        let token = sign_token("db.example.com", 5432, "back-up", "eu-west-1", credentials, at).unwrap();
        let token = token.expose();
        assert!(token.starts_with("db.example.com:5432/?Action=connect&DBUser=back%2Dup&"), "{token}");
        for part in [
            "X-Amz-Expires=900",
            "X-Amz-Credential=AKIDEXAMPLE%2F20250621%2Feu-west-1%2Frds-db%2Faws4_request",
            "X-Amz-Signature=",
        ] {
            assert!(token.contains(part), "{part} in {token}");
        }
    }
}
