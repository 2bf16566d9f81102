//! The control socket: how other processes reach a lab that runs in the background.
//!
//! Questions and answers are lines of JSON on a unix socket. For a conversation with an agent the lab opens the connection
//! inside its namespaces and hands over the descriptor, so that nothing outside ever uses a lab address.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::config::Kind;
use crate::fault::Fault;
use crate::lab::Lab;
use crate::network::Network;
use crate::protocol::PORT;
use crate::remote::{Agent, Dial};

/// The longest line that either side takes.
const MAX_LINE: u64 = 1 << 20;

/// A place in the lab where programs can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// This host.
    Host(usize),
    /// The client.
    Client,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(n) => write!(f, "host h{n}"),
            Self::Client => f.write_str("the client"),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "client" {
            return Ok(Self::Client);
        }
        match text.strip_prefix('h').unwrap_or(text).parse() {
            Ok(n) if n >= 1 => Ok(Self::Host(n)),
            _ => bail!(
                "{text:?} is no place in the lab: hosts are h1, h2 and so on, and there is client"
            ),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Question {
    Status,
    Dial(Place),
    Fault(usize, Fault),
    Down,
}

/// What a lab says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What the hosts are made of.
    pub kind: Kind,
    /// The directory with the hosts' serial logs.
    pub logs: PathBuf,
    /// The client's address.
    pub client: Ipv4Addr,
    /// The hosts.
    pub hosts: Vec<HostStatus>,
}

/// What a lab says of one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// Whether it has power.
    pub on: bool,
    /// How long it took to come up the last time, in seconds.
    pub up_after_seconds: Option<f64>,
    /// Its address on the service network.
    pub service: Ipv4Addr,
    /// Its address on the replication network.
    pub replication: Ipv4Addr,
    /// Its address on the control network.
    pub control: Ipv4Addr,
}

impl Status {
    /// What there is to say of this lab.
    pub fn of(lab: &Lab) -> Self {
        let host = |host: &Arc<crate::Host>| HostStatus {
            name: host.name().into(),
            on: host.is_on(),
            up_after_seconds: host.up_after().map(|time| time.as_secs_f64()),
            service: host.address(Network::Service),
            replication: host.address(Network::Replication),
            control: host.address(Network::Control),
        };
        Self {
            kind: lab.kind(),
            logs: lab.logs().into(),
            client: lab.client().address(),
            hosts: lab.hosts().iter().map(host).collect(),
        }
    }
}

type Answer = Result<Option<Status>, String>;

/// Where the control socket is.
fn socket() -> PathBuf {
    images::cache_dir().join("lab").join("control")
}

/// The right to be the lab that the control socket leads to; there is one at a time.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl Claim {
    /// Takes the right.
    ///
    /// # Errors
    /// Where another lab has it.
    pub fn take() -> Result<Self> {
        let path = socket().with_extension("lock");
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let lock =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("a lab is up already; `cargo xtask lab down` ends it")
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Answers other processes until one of them asks for the end.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn serve(&self, lab: Lab) -> Result<()> {
        let path = socket();
        // We have the claim: whatever is there is left over from a lab that ended.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| {
            format!(
                "cannot make the control socket {} (a path may have 107 bytes)",
                path.display()
            )
        })?;
        let server = Arc::new(Server {
            lab,
            client_agent: Mutex::new(None),
        });
        let (end, ended) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (server, end) = (Arc::clone(&server), end.clone());
                    let spawned = thread::Builder::new()
                        .name("session".into())
                        .spawn(move || {
                            // The other process ended in the middle of something: nothing is owed to it.
                            if matches!(server.session(&stream), Ok(true)) {
                                let _ = end.send(stream);
                            }
                        });
                    drop(spawned);
                }
            })?;
        // The stream is kept until this process is gone: its end tells the other side that all is over.
        let _last = ended.recv()?;
        let _ = fs::remove_file(&path);
        Ok(())
    }
}

struct Server {
    lab: Lab,
    client_agent: Mutex<Option<Child>>,
}

impl Server {
    /// Answers one process until it goes, or asks for the end: `true`.
    fn session(&self, stream: &UnixStream) -> Result<bool> {
        // As long as the session lasts, its conversations with agents can be ended when a host loses power.
        let mut handed_over = Vec::new();
        let mut from = BufReader::new(stream);
        loop {
            let Some(question) = line(&mut from)? else {
                return Ok(false);
            };
            match serde_json::from_slice(&question) {
                Ok(Question::Down) => {
                    answer(stream, &Ok(None), None)?;
                    return Ok(true);
                }
                Ok(Question::Dial(place)) => match self.dial(place) {
                    Ok(connection) => {
                        answer(stream, &Ok(None), Some(&connection))?;
                        handed_over.push(connection);
                    }
                    Err(error) => answer(stream, &Err(format!("{error:#}")), None)?,
                },
                Ok(Question::Status) => answer(stream, &Ok(Some(Status::of(&self.lab))), None)?,
                Ok(Question::Fault(n, fault)) => {
                    let done = self.host(n).and_then(|host| host.apply(&fault));
                    answer(
                        stream,
                        &done.map(|()| None).map_err(|error| format!("{error:#}")),
                        None,
                    )?;
                }
                Err(error) => answer(
                    stream,
                    &Err(format!("the question is not understood: {error}")),
                    None,
                )?,
            }
        }
    }

    fn host(&self, n: usize) -> Result<&crate::Host> {
        let hosts = self.lab.hosts();
        let host = n.checked_sub(1).and_then(|index| hosts.get(index));
        host.map(AsRef::as_ref)
            .with_context(|| format!("there is no host h{n}; the lab has h1 to h{}", hosts.len()))
    }

    fn dial(&self, place: Place) -> Result<Arc<TcpStream>> {
        match place {
            Place::Host(n) => self.host(n)?.agent().dial(),
            Place::Client => self.dial_client(),
        }
    }

    /// The client has an agent too, once somebody asks for it.
    fn dial_client(&self) -> Result<Arc<TcpStream>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let mut agent = self
            .client_agent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if agent.is_none() {
            let program = self
                .lab
                .image()
                .agent
                .to_str()
                .context("the agent's path is not UTF-8")?;
            let mut command = self.lab.client().command(program)?;
            command.arg(address.to_string()).stdin(Stdio::null());
            *agent = Some(command.spawn().context("cannot start the client's agent")?);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match self.lab.client().connect(address) {
                Ok(stream) => return Ok(Arc::new(stream)),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("the client's agent does not answer");
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// A session with the lab that is up.
#[derive(Clone)]
pub struct Session {
    stream: Arc<Mutex<UnixStream>>,
}

impl Session {
    /// Opens one.
    ///
    /// # Errors
    /// Where no lab is up.
    pub fn open() -> Result<Self> {
        let stream = UnixStream::connect(socket())
            .context("no lab is up; `cargo xtask lab up` starts one")?;
        Ok(Self {
            stream: Arc::new(Mutex::new(stream)),
        })
    }

    fn ask(&self, question: &Question) -> Result<(Option<Status>, Option<OwnedFd>)> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = serde_json::to_vec(question)?;
        text.push(b'\n');
        (&*stream).write_all(&text).context("the lab ended")?;
        let (text, descriptor) = receive(&stream).context("the lab ended")?;
        let answer: Answer = serde_json::from_slice(&text)?;
        Ok((answer.map_err(|error| anyhow!(error))?, descriptor))
    }

    /// What the lab says of itself.
    ///
    /// # Errors
    /// Where the lab ended.
    pub fn status(&self) -> Result<Status> {
        self.ask(&Question::Status)?
            .0
            .context("the lab answered without a status")
    }

    /// Lets something happen to host `n`.
    ///
    /// # Errors
    /// Those of [`Host::apply`](crate::Host::apply).
    pub fn fault(&self, n: usize, fault: Fault) -> Result<()> {
        self.ask(&Question::Fault(n, fault)).map(drop)
    }

    /// The agent at a place. It can be used as long as this session lives.
    pub fn agent(&self, place: Place) -> Agent {
        Agent::new(Arc::new(Way {
            session: self.clone(),
            place,
            name: place.to_string(),
        }))
    }

    /// Ends the lab, and waits until nothing of it is left.
    ///
    /// # Errors
    /// Where it does not end within ten seconds.
    pub fn down(&self) -> Result<()> {
        self.ask(&Question::Down)?;
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let left = (&*stream).read(&mut [0]).context("the lab does not end")?;
        ensure!(left == 0, "the lab said something after its end");
        Ok(())
    }
}

/// The way to an agent through the control socket.
struct Way {
    session: Session,
    place: Place,
    name: String,
}

impl Dial for Way {
    fn dial(&self) -> Result<Arc<TcpStream>> {
        let (_, descriptor) = self.session.ask(&Question::Dial(self.place))?;
        Ok(Arc::new(
            descriptor
                .context("the lab handed over no connection")?
                .into(),
        ))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Sends an answer, and with it a descriptor.
fn answer(stream: &UnixStream, answer: &Answer, descriptor: Option<&Arc<TcpStream>>) -> Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|stream| [stream.as_fd()]);
    if let Some(descriptors) = &descriptors {
        ensure!(
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors)),
            "no room for a descriptor"
        );
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(&text)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    let mut stream = stream;
    stream.write_all(&text[sent..])?;
    Ok(())
}

/// Receives one line, and the descriptor that came with it.
fn receive(stream: &UnixStream) -> Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut text = Vec::new();
    let mut descriptor = None;
    while text.last() != Some(&b'\n') {
        ensure!(text.len() as u64 <= MAX_LINE, "an answer without an end");
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        ensure!(received.bytes > 0, "the connection ended");
        text.extend_from_slice(&bytes[..received.bytes]);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptor = descriptors.last().or(descriptor);
            }
        }
    }
    Ok((text, descriptor))
}

fn line(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut text)?;
    Ok((text.last() == Some(&b'\n')).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_answer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        answer(&ours, &Ok(None), Some(&connection)).unwrap();
        let (text, descriptor) = receive(&theirs).unwrap();
        assert_eq!(text, b"{\"Ok\":null}\n");
        let received: TcpStream = descriptor.unwrap().into();
        assert_eq!(
            received.peer_addr().unwrap(),
            listener.local_addr().unwrap()
        );

        answer(&ours, &Err("no".into()), None).unwrap();
        let (text, descriptor) = receive(&theirs).unwrap();
        assert_eq!(text, b"{\"Err\":\"no\"}\n");
        assert!(descriptor.is_none());
        drop(ours);
        assert!(receive(&theirs).is_err());
    }

    #[test]
    fn places_are_read() {
        assert_eq!("h2".parse::<Place>().unwrap(), Place::Host(2));
        assert_eq!("2".parse::<Place>().unwrap(), Place::Host(2));
        assert_eq!("client".parse::<Place>().unwrap(), Place::Client);
        assert!("h0".parse::<Place>().is_err());
        assert!("host".parse::<Place>().is_err());
    }

    #[test]
    fn a_line_without_end_is_none() {
        assert_eq!(line(&mut &b"{}\n"[..]).unwrap().unwrap(), b"{}\n");
        assert!(line(&mut &b"{}"[..]).unwrap().is_none());
    }
}
