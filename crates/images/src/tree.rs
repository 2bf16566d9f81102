//! A file tree in memory, from which both an initial RAM file system and a disk image are made.

use std::collections::BTreeMap;

/// How many symbolic links a path may lead through; the kernel's own limit.
const MAX_LINKS: usize = 40;

/// What lies at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Symlink { target: String },
}

/// Nodes by path. Paths are relative to the root, without `.` and `..`, and never lead through a symbolic link: an
/// insertion below a link lands where the link points. Parents come before their children in the order of the map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// A root as Debian lays it out, with `/bin`, `/sbin` and `/lib` merged into `/usr`.
    pub(crate) fn merged_usr() -> Self {
        let mut tree = Self::default();
        for name in ["bin", "lib", "lib64", "sbin"] {
            tree.directory(&format!("usr/{name}"), 0o755);
            tree.symlink(name, &format!("usr/{name}"));
        }
        tree
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.real_path(path, false))
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        // A link to a directory is as good as the directory: `/bin` may be asked for on a merged root.
        let path = self.real_path(path, true);
        self.insert(
            path,
            Node::Directory {
                mode: mode & 0o7777,
            },
        );
    }

    /// Puts a file at `path`, or at the place to which a link there points.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        let path = self.real_path(path, true);
        self.insert(
            path,
            Node::File {
                mode: mode & 0o7777,
                content,
            },
        );
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        let path = self.real_path(path, false);
        self.insert(
            path,
            Node::Symlink {
                target: target.to_owned(),
            },
        );
    }

    fn insert(&mut self, path: String, node: Node) {
        if path.is_empty() {
            return;
        }
        for (at, _) in path.match_indices('/') {
            self.nodes
                .entry(path[..at].to_owned())
                .or_insert(Node::Directory { mode: 0o755 });
        }
        self.nodes.insert(path, node);
    }

    /// `path` with `.`, `..` and the links on its way resolved; the last part only if `follow_last`.
    fn real_path(&self, path: &str, follow_last: bool) -> String {
        let mut todo: Vec<&str> = path.rsplit('/').collect();
        let mut done: Vec<&str> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if todo.iter().all(|p| p.is_empty()) && !follow_last {
                continue;
            }
            if let Some(Node::Symlink { target }) = self.nodes.get(&done.join("/"))
                && links < MAX_LINKS
            {
                links += 1;
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                todo.extend(target.rsplit('/'));
            }
        }
        done.join("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_through_links_to_their_real_place() {
        let mut tree = Tree::merged_usr();
        tree.file("/bin/busybox", 0o755, b"x".to_vec());
        tree.directory("/lib", 0o755);
        tree.file("etc/x/.././motd", 0o644, Vec::new());
        let paths: Vec<_> = tree.nodes().map(|(p, _)| p).collect();
        assert!(
            paths.contains(&"usr/bin/busybox") && paths.contains(&"etc/motd"),
            "{paths:?}"
        );
        assert_eq!(
            tree.get("bin"),
            Some(&Node::Symlink {
                target: "usr/bin".into()
            })
        );
        assert_eq!(
            tree.get("/lib/"),
            Some(&Node::Symlink {
                target: "usr/lib".into()
            })
        );
    }

    #[test]
    fn parents_are_made_and_come_first() {
        let mut tree = Tree::default();
        tree.file("a-b", 0o600, Vec::new());
        tree.file("a/b/c", 0o600, Vec::new());
        let paths: Vec<_> = tree.nodes().map(|(p, _)| p).collect();
        assert_eq!(paths, ["a", "a-b", "a/b", "a/b/c"]);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let mut tree = Tree::default();
        tree.symlink("a", "b");
        tree.symlink("b", "a");
        tree.file("a/x", 0o600, Vec::new());
    }
}
