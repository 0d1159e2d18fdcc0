//! Administration: health, status and metrics over HTTP, on a port of its own.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::replica::{Role, Status};

use super::metrics::Metrics;
use super::visitors::Visitors;

/// How long the loop may take to say how the server is.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Who can be asked how the server is.
pub(super) type Asking = mpsc::Sender<oneshot::Sender<Report>>;

/// How a server is: the answer of `/status`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    id: u8,
    version: &'static str,
    role: &'static str,
    leader: Option<u8>,
    epoch: u32,
    last_zxid: String,
    committed_zxid: String,
    applied_zxid: String,
    followers: Vec<FollowerReport>,
    sessions: usize,
    local_sessions: usize,
    unopened_sessions: usize,
    connections: usize,
    watches: usize,
    nodes: u64,
    ephemerals: usize,
    bytes: u64,
    digest: String,
    linked_peers: usize,
    uptime_ms: u64,
    disk_free_bytes: u64,
    tree_used_bytes: u64,
    tree_reserved_bytes: u64,
    low_space: bool,
}

#[derive(Clone, Debug, Serialize)]
struct FollowerReport {
    id: u8,
    in_sync: bool,
    acked_zxid: String,
    lag: u64,
}

/// What the server knows beside its replica.
pub(super) struct Local {
    pub(super) connections: usize,
    pub(super) linked_peers: usize,
    pub(super) uptime_ms: u64,
    pub(super) disk_free_bytes: u64,
    pub(super) tree_used_bytes: u64,
    pub(super) tree_reserved_bytes: u64,
    pub(super) low_space: bool,
}

impl Report {
    pub(super) fn new(status: &Status, local: Local) -> Report {
        let follower = |follower: &crate::replica::Follower| FollowerReport {
            id: follower.id.get(),
            in_sync: follower.in_sync,
            acked_zxid: follower.acked.to_string(),
            lag: follower.lag,
        };
        Report {
            id: status.id.get(),
            version: env!("CARGO_PKG_VERSION"),
            role: role(status.role),
            leader: status.leader.map(conclave_proto::ServerId::get),
            epoch: status.epoch.get(),
            last_zxid: status.last.to_string(),
            committed_zxid: status.committed.to_string(),
            applied_zxid: status.applied.to_string(),
            followers: status.followers.iter().map(follower).collect(),
            sessions: status.sessions,
            local_sessions: status.local_sessions,
            unopened_sessions: status.unopened_sessions,
            connections: local.connections,
            watches: status.watches,
            nodes: status.nodes,
            ephemerals: status.ephemerals,
            bytes: status.bytes,
            digest: format!("{:016x}", status.digest),
            linked_peers: local.linked_peers,
            uptime_ms: local.uptime_ms,
            disk_free_bytes: local.disk_free_bytes,
            tree_used_bytes: local.tree_used_bytes,
            tree_reserved_bytes: local.tree_reserved_bytes,
            low_space: local.low_space,
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Looking => "looking",
        Role::Following => "following",
        Role::Observing => "observing",
        Role::Leading => "leading",
    }
}

#[derive(Clone)]
struct Admin {
    asking: Asking,
    metrics: Arc<Metrics>,
}

/// Serves administration for ever.
pub(super) async fn serve(listener: TcpListener, asking: Asking, metrics: Arc<Metrics>) {
    let router = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics_text))
        .with_state(Admin { asking, metrics });
    if let Err(error) = axum::serve(Visitors::new(listener), router).await {
        tracing::error!(%error, "administration has ended");
    }
}

async fn ask(admin: &Admin) -> Option<Report> {
    let (answer, asked) = oneshot::channel();
    admin.asking.try_send(answer).ok()?;
    timeout(ANSWER_DEADLINE, asked).await.ok()?.ok()
}

async fn ready(State(admin): State<Admin>) -> Response {
    match ask(&admin).await {
        Some(report) if report.leader.is_some() && report.role != "looking" => {
            "ready\n".into_response()
        }
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "no leader\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no answer\n").into_response(),
    }
}

async fn status(State(admin): State<Admin>) -> Response {
    match ask(&admin).await {
        Some(report) => Json(report).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no answer\n").into_response(),
    }
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode()).into_response()
}
