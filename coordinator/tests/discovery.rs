//! Sources of membership that need no cluster: a file that is rewritten, and a DNS server of the test's own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption in a test is a failed test")]

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use std::time::Duration;

use cosec_coordinator::discovery::{
    DiscoveryMetrics, DiscoverySource, KubernetesSource, MAX_MEMBERS, Member, MemberAnnouncer, MembersFile,
};
use cosec_proto::WorkerRole;
use cosec_proto::metrics::MetricRegistry;
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::watch;

/// Far longer than anything takes; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

fn follow(source: impl DiscoverySource + 'static) -> (watch::Receiver<Vec<Member>>, DiscoveryMetrics) {
    let metrics = DiscoveryMetrics::register(&MetricRegistry::default()).unwrap();
    let announcer = MemberAnnouncer::new(["m".to_owned()].into(), metrics.clone());
    let members = announcer.members();
    let source: Box<dyn DiscoverySource> = Box::new(source);
    tokio::spawn(source.run(announcer));
    (members, metrics)
}

async fn until_members(members: &mut watch::Receiver<Vec<Member>>, expected: &[Member]) {
    let arrived = tokio::time::timeout(PATIENCE, members.wait_for(|now| now == expected)).await.is_ok();
    if !arrived {
        panic!("{:?}, not {expected:?}", *members.borrow());
    }
}

async fn until_up(metrics: &DiscoveryMetrics, up: i64) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while metrics.up.get() != up {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "cosec_discovery_up does not become {up}");
}

fn member(role: WorkerRole, address: &str) -> Member {
    Member { model: "m".to_owned(), role, address: address.to_owned() }
}

#[tokio::test]
async fn a_members_file_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("members.toml");
    let entry = |role: &str, address: &str| {
        format!("[[members]]\nmodel = \"m\"\nrole = \"{role}\"\naddress = \"{address}\"\n")
    };
    assert!(MembersFile::open(&path).unwrap_err().to_string().contains("members.toml"));
    std::fs::write(&path, entry("judge", "a:1")).unwrap();
    assert!(MembersFile::open(&path).unwrap_err().to_string().contains("judge"));

    std::fs::write(&path, entry("base", "a:1")).unwrap();
    let (mut members, metrics) = follow(MembersFile::open(&path).unwrap());
    until_members(&mut members, &[member(WorkerRole::Base, "a:1")]).await;
    assert_eq!(metrics.up.get(), 1);
    let both = entry("expert", "b:2") + &entry("base", "a:1") + &entry("base", "a:1");
    std::fs::write(&path, &both).unwrap();
    let expected = [member(WorkerRole::Base, "a:1"), member(WorkerRole::Expert, "b:2")];
    until_members(&mut members, &expected).await;

    // What cannot be read changes nothing.
    std::fs::write(&path, "members = 3").unwrap();
    until_up(&metrics, 0).await;
    assert_eq!(*members.borrow(), expected);
    std::fs::write(&path, entry("base", "c:3")).unwrap();
    until_members(&mut members, &[member(WorkerRole::Base, "c:3")]).await;
    assert_eq!(metrics.up.get(), 1);
}

#[test]
fn only_so_many_members_of_configured_models_are_told_of() {
    let metrics = DiscoveryMetrics::register(&MetricRegistry::default()).unwrap();
    let announcer = MemberAnnouncer::new(["m".to_owned()].into(), metrics.clone());
    let members = announcer.members();
    let strangers =
        |count: usize| (0..count).map(|at| Member { model: format!("m{at}"), ..member(WorkerRole::Base, "a:1") });
    announcer.announce(strangers(20_000).chain([member(WorkerRole::Base, "z:1"), member(WorkerRole::Expert, "z:2")]));
    let truth = [member(WorkerRole::Base, "z:1"), member(WorkerRole::Expert, "z:2")];
    assert_eq!(*members.borrow(), truth);
    // Those that were there stay, though others come first in every order.
    let flood = |role| (0..3_000).map(move |at| member(role, &format!("a-{at}:1")));
    announcer.announce(flood(WorkerRole::Expert).chain(truth.clone()).chain(strangers(9)));
    let now = members.borrow().clone();
    assert!(now.contains(&truth[0]) && now.contains(&truth[1]));
    assert_eq!((now.len(), metrics.members_left_out.get()), (1 + MAX_MEMBERS, 3_001 - MAX_MEMBERS as i64));
    announcer.announce(truth.clone());
    assert_eq!((members.borrow().as_slice(), metrics.members_left_out.get()), (truth.as_slice(), 0));
}

/// What the DNS server answers: pods as last byte of their address and port, or nothing at all.
type Pods = Arc<Mutex<Option<Vec<(u8, u16)>>>>;

const SERVICE: &str = "_grpc._tcp.cosec-base.ns.svc.cluster.local.";

/// A DNS server for one headless service.
async fn serve_dns(pods: Pods) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let Some(pods) = pods.lock().clone() else { continue };
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            let query = message.queries[0].clone();
            message.metadata.message_type = MessageType::Response;
            let host = |last: u8| Name::from_ascii(format!("pod-{last}.cosec-base.ns.svc.cluster.local.")).unwrap();
            let of_service = query.name() == &Name::from_ascii(SERVICE).unwrap();
            for (last, port) in pods {
                let data = match query.query_type() {
                    RecordType::SRV if of_service => RData::SRV(SRV::new(0, 0, port, host(last))),
                    RecordType::A if query.name() == &host(last) => RData::A(A::new(10, 0, 0, last)),
                    _ => continue,
                };
                message.add_answer(Record::from_rdata(query.name().clone(), 1, data));
            }
            if message.answers.is_empty() && of_service {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_headless_service_is_resolved_again_and_again() {
    let pods = Pods::default();
    let server = serve_dns(Arc::clone(&pods)).await;
    let set = |now: Option<Vec<(u8, u16)>>| *pods.lock() = now;
    let (mut members, metrics) =
        follow(KubernetesSource::new(vec![member(WorkerRole::Base, SERVICE)], Some(server)).unwrap());
    set(Some(vec![(1, 9001)]));
    until_members(&mut members, &[member(WorkerRole::Base, "10.0.0.1:9001")]).await;
    set(Some(vec![(2, 9002), (1, 9001)]));
    until_members(
        &mut members,
        &[member(WorkerRole::Base, "10.0.0.1:9001"), member(WorkerRole::Base, "10.0.0.2:9002")],
    )
    .await;
    assert_eq!(metrics.up.get(), 1);

    // A silent server changes nothing; one that says that there is no pod is believed.
    set(None);
    until_up(&metrics, 0).await;
    assert_eq!(members.borrow().len(), 2);
    set(Some(Vec::new()));
    until_members(&mut members, &[]).await;
    assert_eq!(metrics.up.get(), 1);
}
