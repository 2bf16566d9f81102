//! What the kernel's datagrams say of the watched interfaces.

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_packet_route::{
    AddressFamily,
    link::{LinkFlags, LinkHeader},
};

/// Kinds of netlink messages (`linux/netlink.h`, `linux/rtnetlink.h`).
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
/// The attribute that holds an interface's name (`IFLA_IFNAME`).
const NAME: u16 = 3;
/// Bytes of a link message before its attributes.
const HEADER: usize = 16;
/// Messages begin at multiples of this.
const ALIGNMENT: usize = 4;

/// Whether a datagram could be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It was.
    Followed,
    /// Something is missing: all links are to be listed again.
    Missed,
}

#[derive(Clone, Debug)]
struct Link {
    name: String,
    /// The kernel's number of it, while there is one.
    index: Option<u32>,
    up: bool,
    /// It was in the list that is being read.
    listed: bool,
}

/// The watched interfaces. One that does not exist has no carrier.
#[derive(Clone, Debug)]
pub(super) struct Links {
    links: Vec<Link>,
    listing: bool,
}

impl Links {
    pub(super) fn new(names: &[String]) -> Links {
        let links = names.iter().map(|name| Link {
            name: name.clone(),
            index: None,
            up: false,
            listed: false,
        });
        Links {
            links: links.collect(),
            listing: false,
        }
    }

    /// Which have a carrier.
    pub(super) fn up(&self) -> Vec<bool> {
        self.links.iter().map(|link| link.up).collect()
    }

    /// A list of all links was asked for.
    pub(super) fn begin_list(&mut self) {
        self.listing = true;
        for link in &mut self.links {
            link.listed = false;
        }
    }

    /// Whether the list has not ended.
    pub(super) fn is_listing(&self) -> bool {
        self.listing
    }

    /// Reads a datagram.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> News {
        let mut news = News::Followed;
        while !bytes.is_empty() {
            let Ok(message) = NetlinkBuffer::new_checked(bytes) else {
                return News::Missed;
            };
            // Not shorter than its header and no longer than what is there: that was checked.
            let length = message.length() as usize;
            match message.message_type() {
                NEW_LINK => self.link(message.payload(), true),
                DEL_LINK => self.link(message.payload(), false),
                DONE => self.end_list(),
                OVERRUN => news = News::Missed,
                _ => {}
            }
            bytes = bytes
                .get(length.next_multiple_of(ALIGNMENT)..)
                .unwrap_or_default();
        }
        news
    }

    fn end_list(&mut self) {
        if std::mem::take(&mut self.listing) {
            for link in self.links.iter_mut().filter(|link| !link.listed) {
                (link.index, link.up) = (None, false);
            }
        }
    }

    fn link(&mut self, payload: &[u8], there: bool) {
        let (Ok(header), Some(attributes)) = (LinkHeader::parse(payload), payload.get(HEADER..))
        else {
            return;
        };
        // A bridge tells of its ports in messages of the same kind: one that leaves is not gone.
        if header.interface_family != AddressFamily::Unspec {
            return;
        }
        let carries = LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Running;
        let up = there && header.flags.contains(carries);
        let name = name(attributes);
        for link in &mut self.links {
            if there && name == Some(link.name.as_bytes()) {
                (link.index, link.up, link.listed) = (Some(header.index), up, true);
            } else if link.index == Some(header.index) && (!there || name.is_some()) {
                // Removed, or it has another name now.
                (link.index, link.up) = (None, false);
            }
        }
    }
}

/// The name among a link's attributes.
fn name(attributes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.ok()?;
        let length = usize::from(attribute.length());
        if attribute.kind() == NAME {
            let value = attributes.get(at + 4..at + length)?;
            return value.split(|byte| *byte == 0).next();
        }
        at += length.next_multiple_of(ALIGNMENT);
    }
    None
}
