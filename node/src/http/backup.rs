//! `admin/metadata/backup`: a backup of the agreed metadata, as the file it is.

use std::io::Read;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use engram_model::error::Class;
use futures::stream;
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::App;
use super::answer::{Failure, text};
use crate::error::Error;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// `GET admin/metadata/backup`.
pub(crate) async fn backup(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let file = app.node.backup().await.map_err(|error| Failure::query(&error))?;
    let length = file.metadata().map_err(|e| Failure::query(&Error::new(Class::Internal, e.to_string())))?.len();
    let pieces = stream::try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE_BYTES];
            let bytes = file.read(&mut piece)?;
            piece.truncate(bytes);
            Ok::<_, std::io::Error>((piece, file))
        });
        let (piece, file) = read.await.map_err(std::io::Error::other)??;
        Ok::<_, std::io::Error>((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
    });
    let mut response = text("").map(|_| Body::from_stream(pieces));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}
