//! Whether the client of a connection is still there.
//!
//! A client that closes its sending half may have left, or may wait for its answer with nothing more to ask (`nc`, some
//! probes): the two look the same. So what is ready soon is still answered, in whole; what is at work after that stops, as
//! it does for a client that left, and the answer says so with 499. The HTTP library's own choice is to answer nothing or
//! to notice nothing: the first makes a probe a matter of luck, the second lets queries run on for nobody.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use engram_model::error::Class;
use http::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::Error;

use super::answer::Failure;

/// The client at the other end of one connection. Clones share it.
#[derive(Clone)]
pub(super) struct Client(Arc<State>);

struct State {
    /// How long answers may still take once nothing more is sent.
    answer_within: Duration,
    /// Requests whose bodies have not arrived in whole.
    asking: AtomicUsize,
    /// Requests whose answers have not been handed over in whole.
    answering: AtomicUsize,
    ended: CancellationToken,
}

impl Client {
    /// Somebody who has asked nothing yet; answers may take `answer_within` once nothing more is sent.
    pub(super) fn new(answer_within: Duration) -> Self {
        let counter = || AtomicUsize::new(0);
        Self(Arc::new(State {
            answer_within,
            asking: counter(),
            answering: counter(),
            ended: CancellationToken::new(),
        }))
    }

    /// Whether all that was asked is here, and something of it unanswered: then the end of what is sent is no failure.
    pub(super) fn awaits_answers(&self) -> bool {
        self.0.asking.load(Ordering::Acquire) == 0 && self.0.answering.load(Ordering::Acquire) > 0
    }

    /// It sends nothing more: what is not ready soon stops.
    pub(super) fn ends(&self) {
        self.0.ended.cancel();
    }

    /// Comes when it sends nothing more and nothing more is done for it.
    async fn left(self) {
        self.0.ended.cancelled().await;
        tokio::time::sleep(self.0.answer_within).await;
    }

    /// The router for requests of this client.
    pub(super) fn served_by(self, router: Router) -> Served {
        Served { client: self, router }
    }
}

/// One of a client's counters, held up.
struct Held(Client, fn(&State) -> &AtomicUsize);

impl Held {
    fn new(client: &Client, which: fn(&State) -> &AtomicUsize) -> Self {
        which(&client.0).fetch_add(1, Ordering::AcqRel);
        Self(client.clone(), which)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.1)(&self.0.0).fetch_sub(1, Ordering::AcqRel);
    }
}

/// A router that stops for a client that leaves.
#[derive(Clone)]
pub(super) struct Served {
    client: Client,
    router: Router,
}

impl hyper::service::Service<Request<Incoming>> for Served {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (client, router) = (self.client.clone(), self.router.clone());
        // Counted before the first poll: the connection looks for the client's end in between.
        let answering = Held::new(&client, |state| &state.answering);
        let asking = (!request.body().is_end_stream()).then(|| Held::new(&client, |state| &state.asking));
        let request = request.map(|body| Body::new(Asked { body, asking }));
        Box::pin(async move {
            let response = tokio::select! {
                biased;
                response = router.oneshot(request) => response?,
                () = client.left() => too_late().into_response(),
            };
            Ok(response.map(|body| Body::new(Answer { body, left: None, answering })))
        })
    }
}

fn too_late() -> Failure {
    Failure::query(&Error::new(Class::Cancelled, "the client closed its side before the answer was ready"))
}

/// A request's body that says when it is here in whole, or not wanted any more.
struct Asked {
    body: Incoming,
    asking: Option<Held>,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.asking = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body that counts as unanswered until it is handed over, and ends early when its client leaves.
struct Answer {
    body: Body,
    /// Waits for the client to leave, from the first time that the body is not ready.
    left: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    answering: Held,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            return polled;
        }
        let Self { left, answering, .. } = &mut *self;
        let left = left.get_or_insert_with(|| Box::pin(answering.0.clone().left()));
        std::task::ready!(left.as_mut().poll(cx));
        Poll::Ready(Some(Err(axum::Error::new(io::Error::new(io::ErrorKind::ConnectionAborted, "the client left")))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
