//! Reading a request's body: never more than allowed, never longer than allowed.
//!
//! Why by hand: a client that trickles its body would hold memory and a connection for ever, and one that declares a
//! huge body should be refused before a byte of it is read.

use std::time::Duration;

use axum::body::Body;
use axum::body::HttpBody;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::answer::Failure;

/// Room taken at first for a body whose length nobody has told.
const ROOM_BYTES: usize = 16 << 10;

/// Reads the whole body.
///
/// # Errors
/// Too large above `bytes_max`, slow after `within`, bad data when the client stops in the middle.
///
/// # Cancel safety
/// Nothing is kept when dropped.
pub(crate) async fn read(body: Body, bytes_max: usize, within: Duration) -> Result<Bytes, Failure> {
    match tokio::time::timeout(within, collect(body, bytes_max)).await {
        Ok(read) => read,
        Err(_) => Err(Failure::slow_body(within.as_secs())),
    }
}

async fn collect(mut body: Body, bytes_max: usize) -> Result<Bytes, Failure> {
    let declared = HttpBody::size_hint(&body).exact();
    if declared.is_some_and(|length| length > bytes_max as u64) {
        return Err(Failure::too_large(bytes_max));
    }
    let room = declared.map_or(ROOM_BYTES, |length| usize::try_from(length).unwrap_or(bytes_max));
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::bad_data(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let have = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if data.len() > bytes_max - have {
            return Err(Failure::too_large(bytes_max));
        }
        // A body in one frame is passed on without a copy.
        match first.take() {
            None if rest.is_empty() => first = Some(data),
            None => rest.extend_from_slice(&data),
            Some(one) => {
                rest.reserve(room.max(one.len() + data.len()));
                rest.extend_from_slice(&one);
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;
    use futures::stream;

    fn frames(all: &[&'static str]) -> Body {
        Body::from_stream(stream::iter(all.to_vec()).map_ok())
    }

    trait MapOk: Sized {
        fn map_ok(self) -> stream::BoxStream<'static, Result<Bytes, std::io::Error>>;
    }

    impl<S: futures::Stream<Item = &'static str> + Send + 'static> MapOk for S {
        fn map_ok(self) -> stream::BoxStream<'static, Result<Bytes, std::io::Error>> {
            use futures::StreamExt;
            self.map(|text| Ok(Bytes::from_static(text.as_bytes()))).boxed()
        }
    }

    #[tokio::test]
    async fn a_body_is_read_whole_or_refused() {
        let long = Duration::from_secs(5);
        assert_eq!(read(frames(&[]), 4, long).await.unwrap(), "");
        assert_eq!(read(frames(&["ab", "c", "d"]), 4, long).await.unwrap(), "abcd");
        assert_eq!(read(Body::from("abcd"), 4, long).await.unwrap(), "abcd");
        for body in [frames(&["ab", "cde"]), frames(&["abcde"]), Body::from("abcde")] {
            let failure = read(body, 4, long).await.unwrap_err();
            assert_eq!(failure.into_response().status().as_u16(), 413);
        }
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let failure = read(never, 4, Duration::ZERO).await.unwrap_err();
        assert_eq!(failure.into_response().status().as_u16(), 408);
    }
}
