//! Goal: an answer that breaks off says so, and a stream of writes ends with the port. Method: the stream of an answer by
//! itself; the service on a free port with a sender that never ends.

use engram_model::tenant::TenantLimits;
use engram_model::time::Clock;
use engram_raft::group::FirstStart;
use engram_raft::{Group, GroupOptions};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::ingest::LocalReplica;
use crate::meta::TenantDefaults;
use crate::meta::nodes::NodeSpec;
use crate::peer::remote::{CLUSTER_KEY, TO_KEY};
use crate::peer::wire::proto::ingest_client::IngestClient;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_a_failure() {
    let frame = || Frame { body: Bytes::from_static(b"x"), ..Frame::default() };
    let whole = move |(), tx: mpsc::Sender<Frame>| drop(tx.blocking_send(frame()));
    let frames: Vec<_> = produced(async { Ok(()) }, whole, mpsc::channel(FRAMES_AHEAD)).collect().await;
    assert!(frames.len() == 1 && frames[0].as_ref().unwrap().failure.is_none());
    let broken = move |(), tx: mpsc::Sender<Frame>| {
        drop(tx.blocking_send(frame()));
        panic!("a bug");
    };
    let frames: Vec<_> = produced(async { Ok(()) }, broken, mpsc::channel(FRAMES_AHEAD)).collect().await;
    assert_eq!(frames.len(), 2);
    assert!(frames[0].as_ref().unwrap().failure.is_none() && frames[1].as_ref().unwrap().failure.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_writes_ends_when_the_port_closes() {
    let dir = tempfile::tempdir().unwrap();
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let options = GroupOptions::new(dir.path().join("meta"), NodeSpec::default(), first, Clock::test(0));
    let group = Arc::new(Group::open(options).await.unwrap());
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10 };
    let meta = Meta::new(group.clone(), defaults);
    let closing = CancellationToken::new();
    let local = Arc::new(LocalReplica::new(Arc::default(), Vec::new(), 0));
    let api = Api::new(local, meta, closing.clone(), None).into_grpc();
    let listener = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(api);
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(server.serve_with_incoming_shutdown(listener, closing.clone().cancelled_owned()));
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = IngestClient::new(channel.connect().await.unwrap());
    let (tx, sent) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(sent));
    request.metadata_mut().insert(CLUSTER_KEY, "c".parse().unwrap());
    request.metadata_mut().insert(TO_KEY, "1".parse().unwrap());
    // What is there before is still answered.
    let slice = Slice { id: 7, tenant: "t".into(), partition: 0, epoch: 1, within_ms: 1000, ..Slice::default() };
    tx.send(Slices { slices: vec![slice] }).await.unwrap();
    let mut answers = client.append(request).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().answers[0].id, 7);
    closing.cancel();
    let ended = async {
        assert!(answers.message().await.unwrap().is_none());
        servers.join_next().await.unwrap().unwrap().unwrap();
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    drop(tx);
    group.shutdown().await.unwrap();
}
