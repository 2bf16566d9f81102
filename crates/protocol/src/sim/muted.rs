//! The link's path alone is cut, one way or both: the other host is still heard. Output must not
//! wait until the transport notices.

use super::history::Node;
use super::world::{Stage, World};
use super::{Broken, MS};

/// From the cut to what is looked at: by then all that was committed before has left.
const COMMITTED: u64 = 60 * MS;
/// How long until that has left, too: 2 · the highest `T_b` on the slowest clock, two requests of the
/// arbiter, some ticks.
const GIVEN_UP: u64 = 900 * MS;
const LASTS: u64 = 1_200 * MS;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Muted {
    primary: usize,
    since: u64,
    /// What the guest did last before its output was to be stuck.
    mark: Option<Node>,
    checked: bool,
}

impl World<'_> {
    /// Cuts the link's path between the two.
    pub(super) fn mute(&mut self, primary: usize, heir: usize) {
        let (since, way) = (self.now, self.random.index(3));
        if way != 0 {
            self.cut(0, primary, heir, since + LASTS);
        }
        if way != 1 {
            self.cut(0, heir, primary, since + LASTS);
        }
        self.stage = Stage::Muted(Muted {
            primary,
            since,
            mark: None,
            checked: false,
        });
    }

    /// Moves it on.
    pub(super) fn muted(&mut self, mut muted: Muted) {
        let passed = self.now - muted.since;
        let process = self.computers[muted.primary].process.as_ref();
        let tip = process.and_then(|p| p.guest.as_ref()).map(|g| g.tip);
        if passed > COMMITTED && muted.mark.is_none() {
            muted.mark = tip.or(Some(0));
        }
        if passed > GIVEN_UP && !muted.checked {
            muted.checked = true;
            let left = muted.mark.is_none_or(|mark| self.history.has_left(mark));
            if !left && self.runner() == Some(muted.primary) {
                self.broke(Broken::Stuck);
            }
        }
        self.stage = if passed > LASTS {
            Stage::Disturbed(self.now + 300 * MS)
        } else {
            Stage::Muted(muted)
        };
    }
}
