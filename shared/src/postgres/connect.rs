//! Opens sessions: TCP or Unix socket, TLS verified against a CA bundle, password or token.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::fault::Fault;
use crate::postgres::copy::RawSession;
use crate::postgres::stream::{Stream, StreamHandle};
use crate::postgres::tls;
use crate::secret::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A network that has gone silent is told from a server that is busy within about a minute and a half: a server that
/// builds an index for an hour still answers probes.
const SILENCE: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// `SSLRequest` (PostgreSQL documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How the connection is encrypted, in libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// Encrypted, the server's identity not checked.
    Require,
    /// Encrypted, certificate chain and host name checked.
    VerifyFull,
}

impl SslMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl FromStr for SslMode {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        match text {
            "disable" => Ok(Self::Disable),
            "require" => Ok(Self::Require),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(ConnectError::SslMode { text: text.to_owned() }),
        }
    }
}

/// Everything needed to connect, secrets resolved.
#[derive(Debug, Clone)]
pub struct Target {
    /// Host name, address, or the directory of a Unix socket (begins with `/`).
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    pub password: Option<Secret>,
    pub ssl_mode: SslMode,
    pub ca_bundle: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{text:?} is not an sslmode (disable, require or verify-full)")]
    SslMode { text: String },
    #[error("the database URL cannot be read: {problem}")]
    Url { problem: String },
    #[error("cannot reach {host}:{port}")]
    Unreachable {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("no answer from {host}:{port} within {seconds} s")]
    TimedOut { host: String, port: u16, seconds: u64 },
    #[error("{host} refuses TLS, and sslmode is {mode}")]
    TlsRefused { host: String, mode: &'static str },
    #[error("the TLS handshake with {host} failed")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("{host:?} is not a name a certificate can be checked against")]
    ServerName { host: String },
    #[error("the CA bundle {path:?} cannot be used")]
    CaBundle {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("sslmode verify-full needs a CA bundle, and none is configured")]
    NoCaBundle,
    #[error("{user} could not log in to database {database}")]
    Login {
        user: String,
        database: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("a connection pooler stands between this function and the server")]
    Pooler,
    #[error("the session ended unexpectedly")]
    SessionEnded,
}

/// Whether traffic to `host` stays on this machine.
pub fn is_loopback(host: &str) -> bool {
    host.starts_with('/') || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Target {
    /// Reads a `postgres://` URL (or libpq's `key=value` form). `sslmode` and `sslrootcert` are honoured in both;
    /// without an sslmode: none on loopback, `verify-full` anywhere else.
    ///
    /// # Errors
    /// [`ConnectError::Url`], whose text never holds the URL itself.
    pub fn from_url(url: &str) -> Result<Self, ConnectError> {
        let (plain, options) = take_tls_options(url);
        let config = tokio_postgres::Config::from_str(&plain)
            .map_err(|error| ConnectError::Url { problem: error.to_string() })?;
        let missing = |what: &str| ConnectError::Url { problem: format!("it names no {what}") };
        let host = match config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            Some(tokio_postgres::config::Host::Unix(path)) => path.display().to_string(),
            None => return Err(missing("host")),
        };
        let user = config.get_user().ok_or_else(|| missing("user"))?.to_owned();
        let password = config.get_password().map(|bytes| Secret::new(String::from_utf8_lossy(bytes)));
        let ssl_mode = options.ssl_mode.map(|text| text.parse()).transpose()?;
        Ok(Self {
            ssl_mode: ssl_mode.unwrap_or_else(|| default_ssl_mode(&host)),
            ca_bundle: options.root_cert.map(PathBuf::from),
            port: config.get_ports().first().copied().unwrap_or(5432),
            database: config.get_dbname().unwrap_or(&user).to_owned(),
            host,
            user,
            password,
        })
    }
}

/// Where neither URL nor settings say: TLS with a checked certificate, but for this machine itself.
pub fn default_ssl_mode(host: &str) -> SslMode {
    if is_loopback(host) { SslMode::Disable } else { SslMode::VerifyFull }
}

#[derive(Default)]
struct TlsOptions {
    ssl_mode: Option<String>,
    root_cert: Option<String>,
}

/// Takes `sslmode` and `sslrootcert` out of a URL's query: `tokio-postgres` knows neither `verify-full` nor files.
fn take_tls_options(url: &str) -> (String, TlsOptions) {
    let mut options = TlsOptions::default();
    let mut keep = |pair: &str| -> bool {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = || percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
        match key.trim() {
            "sslmode" => options.ssl_mode = Some(value()),
            "sslrootcert" => options.root_cert = Some(value()),
            _ => return true,
        }
        false
    };
    let plain = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        match url.split_once('?') {
            None => url.to_owned(),
            Some((base, query)) => {
                let kept: Vec<&str> = query.split('&').filter(|pair| keep(pair)).collect();
                if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) }
            }
        }
    } else {
        url.split_whitespace().filter(|pair| keep(pair)).collect::<Vec<_>>().join(" ")
    };
    (plain, options)
}

/// Opens sessions to one target.
#[derive(Clone)]
pub struct Connector {
    target: Target,
    tls: Option<TlsConnector>,
    application_name: String,
}

impl Connector {
    /// # Errors
    /// [`ConnectError::NoCaBundle`], [`ConnectError::CaBundle`]: the TLS settings cannot be carried out.
    pub fn new(target: Target, application_name: &str) -> Result<Self, ConnectError> {
        let tls = match target.ssl_mode {
            SslMode::Disable => None,
            SslMode::Require => Some(tls::unverified()),
            SslMode::VerifyFull => {
                let path = target.ca_bundle.as_deref().ok_or(ConnectError::NoCaBundle)?;
                Some(tls::verified(path)?)
            }
        };
        Ok(Self { target, tls, application_name: application_name.to_owned() })
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// A session for queries; [`Session::into_raw`] turns it into one for COPY.
    pub async fn session(&self) -> Result<Session, ConnectError> {
        let target = &self.target;
        let (host, port) = (&target.host, target.port);
        let attempt = async {
            let stream = self.stream().await?;
            let mut config = tokio_postgres::Config::new();
            config
                .user(&target.user)
                .dbname(&target.database)
                .application_name(&self.application_name)
                .ssl_mode(tokio_postgres::config::SslMode::Disable);
            if let Some(password) = &target.password {
                config.password(password.expose());
            }
            let handle = StreamHandle::new(stream);
            let (client, connection) = config.connect_raw(handle.clone(), NoTls).await.map_err(|source| {
                ConnectError::Login { user: target.user.clone(), database: target.database.clone(), source }
            })?;
            let driver = tokio::spawn(async move {
                // An error here reaches whoever waits for a query's answer.
                let _ = connection.await;
            });
            Ok(Session { client, driver, handle })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| {
            Err(ConnectError::TimedOut { host: host.clone(), port, seconds: CONNECT_TIMEOUT.as_secs() })
        })
    }

    async fn stream(&self) -> Result<Stream, ConnectError> {
        let Target { host, port, .. } = &self.target;
        let unreachable = |source| ConnectError::Unreachable { host: host.clone(), port: *port, source };
        if host.starts_with('/') {
            let path = Path::new(host).join(format!(".s.PGSQL.{port}"));
            return UnixStream::connect(path).await.map(Stream::Unix).map_err(unreachable);
        }
        let mut tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        notice_silence(&tcp).map_err(unreachable)?;
        let Some(tls) = &self.tls else { return Ok(Stream::Tcp(tcp)) };

        tcp.write_all(&SSL_REQUEST).await.map_err(unreachable)?;
        if tcp.read_u8().await.map_err(unreachable)? != b'S' {
            return Err(ConnectError::TlsRefused { host: host.clone(), mode: self.target.ssl_mode.as_str() });
        }
        let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::ServerName { host: host.clone() })?;
        let stream = tls.connect(name, tcp).await.map_err(|source| ConnectError::Tls { host: host.clone(), source })?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// Probes while nothing comes. Not `TCP_USER_TIMEOUT`: it also ends a connection whose server is slow to read, as one
/// that waits for its disk in the middle of a COPY is.
fn notice_silence(tcp: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    let probes = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE_INTERVAL).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)
}

/// A connected session with `tokio-postgres` in charge.
pub struct Session {
    pub client: tokio_postgres::Client,
    driver: JoinHandle<()>,
    handle: StreamHandle,
}

impl Session {
    /// Fails where the server's process is not the one that answered the handshake.
    ///
    /// # Errors
    /// [`ConnectError::Pooler`]: snapshots and session settings do not survive transaction pooling.
    pub async fn refuse_pooler(&self) -> Result<(), ConnectError> {
        let told = self.handle.backend_pid();
        let row = self.client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await;
        let actual: Option<i32> = row.ok().and_then(|row| row.try_get(0).ok());
        if told == actual { Ok(()) } else { Err(ConnectError::Pooler) }
    }

    /// Takes the session over for COPY, its transaction and settings as they are. No query may be under way.
    pub async fn into_raw(self) -> Result<RawSession, ConnectError> {
        // Statements are closed in the background: an answered query behind them says that nothing is under way.
        self.client.batch_execute("").await.map_err(|_| ConnectError::SessionEnded)?;
        // Aborted before the client is dropped, or the driver would say goodbye to the server.
        self.driver.abort();
        let _ = self.driver.await;
        self.handle.take_back().map(RawSession::new).ok_or(ConnectError::SessionEnded)
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<io::Error>)
}

impl From<ConnectError> for Fault {
    fn from(error: ConnectError) -> Self {
        let sql_state = match &error {
            ConnectError::Login { source, .. } => source.code().map(|state| state.code().to_owned()),
            _ => None,
        };
        let (code, hint) = match (&error, sql_state.as_deref()) {
            (_, Some("28P01" | "28000")) => {
                ("database-login-rejected", "check user and password; with IAM authentication the role needs rds_iam")
            }
            (_, Some("3D000")) => ("database-missing", "check the database's name"),
            (_, Some("53300")) => ("database-too-many-connections", "lower WORKERS or raise max_connections"),
            (_, Some("57P01" | "57P02" | "57P03")) => {
                ("database-unreachable", "the server is starting up or shutting down; the next run starts afresh")
            }
            (ConnectError::Login { source, .. }, None) if source.is_closed() || is_io(source) => {
                ("database-connection-lost", "the next run starts afresh")
            }
            (ConnectError::Login { .. }, _) => ("database-login-failed", "the server's log says more"),
            (ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. }, _) => {
                ("database-unreachable", "check host and port, security groups and subnets")
            }
            (ConnectError::TlsRefused { .. }, _) => {
                ("database-tls-refused", "enable TLS on the server, or set PG_SSLMODE=disable on a trusted network")
            }
            (ConnectError::Tls { .. } | ConnectError::ServerName { .. }, _) => (
                "database-tls-failed",
                "the server's certificate has to be signed by an authority in PG_CA_BUNDLE, for this host name",
            ),
            (ConnectError::CaBundle { .. } | ConnectError::NoCaBundle, _) => {
                ("database-ca-bundle", "set PG_CA_BUNDLE to a PEM file; the pg-client layer holds the RDS one")
            }
            (ConnectError::Pooler, _) => {
                ("database-pooler", "connect to the server itself: snapshots do not survive PgBouncer or RDS Proxy")
            }
            (ConnectError::SslMode { .. } | ConnectError::Url { .. }, _) => {
                ("database-settings", "see docs/configuration.md")
            }
            (ConnectError::SessionEnded, _) => ("database-connection-lost", "the next run starts afresh"),
        };
        Self::from_error(code, &error).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_choose_tls_by_host() {
        let target = |url: &str| Target::from_url(url).unwrap();
        let local = target("postgres://app:s%3Acret@127.0.0.1:5433/shop");
        assert_eq!((local.ssl_mode, local.port, local.database.as_str()), (SslMode::Disable, 5433, "shop"));
        assert_eq!(local.password.unwrap().expose(), "s:cret");
        let remote = target("postgresql://app@db.example.com/shop?connect_timeout=3&sslrootcert=%2Fopt%2Fca.pem");
        assert_eq!((remote.ssl_mode, remote.ca_bundle), (SslMode::VerifyFull, Some("/opt/ca.pem".into())));
        assert_eq!(target("postgres://app@db.example.com/shop?sslmode=require").ssl_mode, SslMode::Require);
        assert_eq!(target("host=db.example.com user=app sslmode=disable").ssl_mode, SslMode::Disable);
        assert!(matches!(Target::from_url("postgres://app@h/d?sslmode=prefer"), Err(ConnectError::SslMode { .. })));
    }

    #[tokio::test]
    async fn a_silent_network_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        notice_silence(&tcp).unwrap();
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap());
        assert_eq!((socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_retries().unwrap()), (SILENCE, PROBES));
    }

    #[test]
    fn errors_and_debug_output_never_show_the_password() {
        let target = Target::from_url("postgres://app:hunter2@127.0.0.1/shop").unwrap();
        assert!(!format!("{target:?}").contains("hunter2"));
        let error = Target::from_url("postgres://app:hunter2@127.0.0.1:notaport/shop").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    }
}
