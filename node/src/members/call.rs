//! The asking side: one short call, one connection, thrown away or kept by whoever asks.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::proto::cluster_client::ClusterClient;
use super::proto::{Admission, Beat, Beating, Hello, Promised, Welcome};
use crate::tls::{Tls, told};

/// Time to reach another node's port.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Connections kept; addresses that nodes left behind must not pile up.
const CHANNELS_MAX: usize = 4096;
/// Largest answer: the complete partitions of a node.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Connections to other nodes, by address.
#[derive(Default)]
pub struct Calls {
    tls: Tls,
    open: Mutex<HashMap<String, Channel>>,
}

impl Calls {
    /// None yet; they are made by `tls`.
    #[must_use]
    pub fn new(tls: &Tls) -> Self {
        Self { tls: tls.clone(), open: Mutex::default() }
    }

    fn client(&self, address: &str) -> Result<ClusterClient<Channel>, String> {
        let mut channels = self.open.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(ClusterClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX));
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| format!("{address}: {e}"))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = self.tls.channel(&endpoint);
        channels.insert(address.to_owned(), channel.clone());
        Ok(ClusterClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// Asks who is there.
    ///
    /// # Errors
    /// Nobody answered in time, and why.
    pub async fn meet(&self, address: &str, hello: Hello, within: Duration) -> Result<Welcome, String> {
        let mut client = self.client(address)?;
        in_time(address, client.meet(Request::new(hello)), within).await
    }

    /// Asks for a promise.
    ///
    /// # Errors
    /// As [`Calls::meet`].
    pub async fn promise(&self, address: &str, hello: Hello, within: Duration) -> Result<Promised, String> {
        let mut client = self.client(address)?;
        in_time(address, client.promise(Request::new(hello)), within).await
    }

    /// Asks to be let in.
    ///
    /// # Errors
    /// As [`Calls::meet`].
    pub async fn join(&self, address: &str, hello: Hello, within: Duration) -> Result<Admission, String> {
        let mut client = self.client(address)?;
        in_time(address, client.join(Request::new(hello)), within).await
    }

    /// Looks whether a member is there.
    ///
    /// # Errors
    /// As [`Calls::meet`].
    pub async fn beat(&self, address: &str, beat: Beat, within: Duration) -> Result<Beating, String> {
        let mut client = self.client(address)?;
        in_time(address, client.beat(Request::new(beat)), within).await
    }
}

async fn in_time<T>(
    address: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    within: Duration,
) -> Result<T, String> {
    match tokio::time::timeout(within, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("{address}: {}", told(&status))),
        Err(_) => Err(format!("{address}: no answer within {} ms", within.as_millis())),
    }
}
