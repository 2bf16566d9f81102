//! The oracle: a guest that counts, and all that ever left it.
//!
//! Each operation of the guest is a node whose parent is the operation before. A host that goes
//! back and lives on makes a branch. Two outputs on different branches, or a start from before an
//! output that had left, are what DESIGN's invariant 3 forbids.

/// A node's index; 0 is the root, the new machine.
pub(super) type Node = usize;

#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    parent: Node,
    depth: u32,
    /// The newest operation up to this one that made the guest's disk durable.
    pub(super) flushed: Node,
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) held: bool,
    pub(super) passed: bool,
}

/// All operations of all branches.
#[derive(Debug)]
pub(super) struct History {
    nodes: Vec<Operation>,
    /// The newest held output that has left.
    released: Node,
    /// The start of the newest term: its number.
    pub(super) newest_term: u64,
}

impl History {
    pub(super) fn new() -> History {
        let root = Operation {
            parent: 0,
            depth: 0,
            flushed: 0,
            term: 0,
            epoch: 0,
            held: true,
            passed: true,
        };
        History {
            nodes: vec![root],
            released: 0,
            newest_term: 0,
        }
    }

    pub(super) fn get(&self, node: Node) -> &Operation {
        &self.nodes[node]
    }

    pub(super) fn add(
        &mut self,
        parent: Node,
        term: u64,
        epoch: u64,
        held: bool,
        flush: bool,
    ) -> Node {
        let node = self.nodes.len();
        let depth = self.nodes[parent].depth + 1;
        let flushed = if flush {
            node
        } else {
            self.nodes[parent].flushed
        };
        self.nodes.push(Operation {
            parent,
            depth,
            flushed,
            term,
            epoch,
            held,
            passed: false,
        });
        node
    }

    /// Whether `old` is `new` or one of those before it.
    pub(super) fn contains(&self, new: Node, old: Node) -> bool {
        let mut node = new;
        while self.nodes[node].depth > self.nodes[old].depth {
            node = self.nodes[node].parent;
        }
        node == old
    }

    /// Held output leaves. False when another branch's output had left before.
    pub(super) fn release(&mut self, node: Node) -> bool {
        self.nodes[node].passed = true;
        if self.contains(node, self.released) {
            self.released = node;
            true
        } else {
            self.contains(self.released, node)
        }
    }

    /// Whether this held output, or a later one, has left.
    pub(super) fn has_left(&self, node: Node) -> bool {
        self.contains(self.released, node)
    }

    pub(super) fn pass_unheld(&mut self, node: Node) {
        self.nodes[node].passed = true;
    }

    /// Whether a term may start from this state: everything held that ever left is in it.
    pub(super) fn may_start(&self, from: Node) -> bool {
        self.contains(from, self.released)
    }

    /// Whether a cold boot may start from this disk: everything that ever left and had been made
    /// durable before is in it. What only memory held is then accepted as lost.
    pub(super) fn may_boot(&mut self, disk: Node) -> bool {
        let held = self.contains(disk, self.nodes[self.released].flushed);
        self.accept_loss(disk);
        held
    }

    /// The operator accepts the loss of what is not in this state.
    pub(super) fn accept_loss(&mut self, state: Node) {
        while !self.contains(state, self.released) {
            self.released = self.nodes[self.released].parent;
        }
    }

    /// The operations from `tip` back, at most `limit` of them.
    pub(super) fn back(&self, tip: Node, limit: usize) -> impl Iterator<Item = Node> {
        let parent = |node: &Node| (*node != 0).then(|| self.nodes[*node].parent);
        std::iter::successors(Some(tip), parent).take(limit)
    }
}
