//! The driver of an answer, in whatever shape: events of the engine → one JSON value, or a stream of events.

use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use moe_run_runtime::engine::EndReason;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, channel};

use crate::error::ApiError;
use crate::listener::{Event, Finished, Piece};
use crate::record::Record;
use crate::respond::{self, Body};

/// Parts of a stream that wait for the client.
const PARTS_AHEAD: usize = 16;
/// How long a client may take no part of a stream.
const SLOW_CLIENT: Duration = Duration::from_secs(60);

/// What an endpoint makes of the engine's events. A shape that streams gives parts, any other keeps what it needs for the whole.
pub trait Shape: Send + 'static {
    /// Before the first token.
    fn begin(&mut self) -> Vec<Bytes>;
    /// More text of a choice.
    fn piece(&mut self, choice: usize, piece: Piece) -> Vec<Bytes>;
    /// The end of a choice.
    fn end(&mut self, choice: usize, finished: Finished) -> Vec<Bytes>;
    /// Behind the last choice's end.
    fn finish(&mut self) -> Vec<Bytes>;
    /// An error in mid-stream.
    fn error(&self, error: &ApiError) -> Bytes;
    /// The whole answer.
    fn whole(self) -> Value;
}

/// What a failed choice is to the client.
fn failure(finished: &Finished) -> Option<ApiError> {
    match &finished.ended.reason {
        EndReason::Failed(why) => Some(ApiError::failed(why.clone())),
        // The client's rule costs more than is allowed.
        EndReason::NotHeld(why) => Some(ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", why.clone())),
        _ => None,
    }
}

/// The engine has ended under a request.
fn ended() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "ending",
        "the server ended before the answer was complete",
    )
}

/// An answer, as a stream or whole. A stream takes the record with it.
///
/// Errors: as [`whole`].
pub async fn give(
    shape: impl Shape,
    receiver: UnboundedReceiver<(usize, Event)>,
    choices: usize,
    streams: bool,
    record: &mut Option<Record>,
) -> Result<Response<Body>, ApiError> {
    match record.take() {
        Some(record) if streams => Ok(stream(shape, receiver, choices, record)),
        Some(mut kept) => {
            let answered = whole(shape, receiver, choices, &mut kept).await;
            *record = Some(kept);
            answered
        }
        None => Err(ApiError::failed("a request without a record")),
    }
}

/// One answer, when all choices are complete.
///
/// Errors: a step failed, or the engine ended.
async fn whole(
    mut shape: impl Shape,
    mut receiver: UnboundedReceiver<(usize, Event)>,
    choices: usize,
    record: &mut Record,
) -> Result<Response<Body>, ApiError> {
    let mut running = choices;
    while running > 0 {
        match receiver.recv().await {
            None => return Err(ended()),
            Some((choice, Event::Piece(piece))) => drop(shape.piece(choice, piece)),
            Some((choice, Event::End(finished))) => {
                running -= 1;
                record.ended(&finished);
                if let Some(error) = failure(&finished) {
                    return Err(error);
                }
                shape.end(choice, finished);
            }
        }
    }
    Ok(respond::json(StatusCode::OK, &shape.whole()))
}

/// Parts as they come. The record is written when the stream has ended, or the client has gone.
fn stream(
    mut shape: impl Shape,
    mut receiver: UnboundedReceiver<(usize, Event)>,
    choices: usize,
    mut record: Record,
) -> Response<Body> {
    let (sender, parts) = channel(PARTS_AHEAD);
    let work = async move {
        if !send(&sender, shape.begin()).await {
            return;
        }
        let mut running = choices;
        while running > 0 {
            let event = tokio::select! {
                event = receiver.recv() => event,
                () = sender.closed() => return,
            };
            let parts = match event {
                None => {
                    record.failed(503, Some("ending"));
                    send(&sender, vec![shape.error(&ended())]).await;
                    return;
                }
                Some((choice, Event::Piece(piece))) => shape.piece(choice, piece),
                Some((choice, Event::End(finished))) => {
                    running -= 1;
                    record.ended(&finished);
                    if let Some(error) = failure(&finished) {
                        record.failed(error.status.as_u16(), error.code);
                        send(&sender, vec![shape.error(&error)]).await;
                        return;
                    }
                    shape.end(choice, finished)
                }
            };
            if !send(&sender, parts).await {
                return;
            }
        }
        send(&sender, shape.finish()).await;
    };
    tokio::spawn(work);
    respond::events(parts)
}

/// Sends parts as one. `false` where the client has gone, or takes nothing.
async fn send(sender: &Sender<Bytes>, parts: Vec<Bytes>) -> bool {
    let joined: Bytes = match parts.len() {
        0 => return true,
        1 => parts.into_iter().next().unwrap_or_default(),
        _ => parts.concat().into(),
    };
    matches!(tokio::time::timeout(SLOW_CLIENT, sender.send(joined)).await, Ok(Ok(())))
}
