//! The endpoint as its owner sees it: what there is goes in, and what was asked for comes out.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::files::ExportTarget;
use super::model::{Call, Course, Planned, Server, Snapshot, State, Task};
use super::{actions, files, query, xml};

pub const ACCOUNT_ID: &str = "123456789012";
pub const REGION: &str = "us-east-1";

#[derive(Debug, thiserror::Error)]
pub enum RdsServerError {
    #[error("cannot listen on loopback")]
    Listen {
        #[from]
        source: std::io::Error,
    },
}

/// A running endpoint. Dropping it stops it.
pub struct RdsServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl RdsServer {
    pub async fn start() -> Result<Self, RdsServerError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let router = Router::new().route("/", post(answer)).with_state(Arc::clone(&state));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, state, serving })
    }

    /// What `AWS_ENDPOINT_URL_RDS` takes.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn add_snapshot(&self, snapshot: Snapshot) {
        locked(&self.state).snapshots.push(snapshot);
    }

    pub fn add_server(&self, server: Server) {
        locked(&self.state).servers.push(server);
    }

    /// What becomes of the next task; of the one after it the next time.
    pub fn script_task(&self, course: Course) {
        locked(&self.state).courses.push_back(course);
    }

    /// Where finished exports are written; without it nothing is.
    pub fn set_target(&self, target: ExportTarget) {
        locked(&self.state).target = Some(target);
    }

    /// For how many looks what is made from now on is `creating`.
    pub fn set_creating(&self, looks: u32) {
        locked(&self.state).creating = looks;
    }

    /// Answers lists in pages of so many.
    pub fn set_page_size(&self, size: usize) {
        locked(&self.state).page_size = Some(size);
    }

    /// A role that does not exist, or that RDS may not assume.
    pub fn add_missing_role(&self, arn: &str) {
        locked(&self.state).missing_roles.insert(arn.to_owned());
    }

    pub fn disable_key(&self, arn: &str) {
        locked(&self.state).disabled_keys.insert(arn.to_owned());
    }

    /// Refuses every request for which the caller would need other rights than these, such as `rds:StartExportTask`.
    pub fn allow_only(&self, rights: impl IntoIterator<Item = String>) {
        locked(&self.state).allowed = Some(rights.into_iter().collect());
    }

    /// Refuses the next `times` requests of an action.
    pub fn fail(&self, action: &str, status: u16, code: &str, message: &str, times: u32) {
        let [action, code, message] = [action, code, message].map(str::to_owned);
        locked(&self.state).planned.push(Planned { action, status, code, message, times });
    }

    pub fn calls(&self) -> Vec<Call> {
        locked(&self.state).calls.clone()
    }

    pub fn calls_of(&self, action: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.action == action).collect()
    }

    pub fn clear_calls(&self) {
        locked(&self.state).calls.clear();
    }

    pub fn tasks(&self) -> Vec<Task> {
        locked(&self.state).tasks.clone()
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        locked(&self.state).snapshots.clone()
    }

    pub fn servers(&self) -> Vec<Server> {
        locked(&self.state).servers.clone()
    }

    /// Changes what is there as nothing that is asked over the wire could.
    pub fn edit_server(&self, id: &str, edit: impl FnOnce(&mut Server)) {
        if let Some(server) = locked(&self.state).servers.iter_mut().find(|server| server.id == id) {
            edit(server);
        }
    }
}

impl Drop for RdsServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A panic elsewhere leaves nothing half-changed here.
fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn answer(
    Shared(state): Shared<Arc<Mutex<State>>>,
    body: String,
) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    const XML: [(&str, &str); 1] = [("content-type", "text/xml")];
    // One at a time: nobody is told of an export that is complete before its files are there.
    let turn = Arc::clone(&locked(&state).turn);
    let _turn = turn.lock().await;
    let parameters = query::fields(&body);
    let action = parameters.get("Action").cloned().unwrap_or_default();
    let (result, finished) = {
        let mut state = locked(&state);
        state.calls.push(Call { action: action.clone(), parameters: parameters.clone() });
        let result = actions::answer(&mut state, &action, &parameters);
        (result, files::finished(&mut state))
    };
    for (task, target) in finished {
        if let Err(problem) = files::write(&task, &target).await {
            let message = format!("the export's files were not written: {problem}");
            return (StatusCode::INTERNAL_SERVER_ERROR, XML, xml::error("InternalFailure", &message));
        }
    }
    match result {
        Ok(result) => (StatusCode::OK, XML, xml::response(&action, &result)),
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
            (status, XML, xml::error(&refusal.code, &refusal.message))
        }
    }
}
