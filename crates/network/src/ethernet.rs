//! What learning and announcing share of Ethernet.

/// A hardware address.
pub type Mac = [u8; 6];

/// Every station (IEEE 802.3).
pub const BROADCAST: Mac = [0xff; 6];

/// The identifier of a VLAN (IEEE 802.1Q): 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan(u16);

impl Vlan {
    /// The VLAN with this identifier, if it is one: 0 means "priority only", 4095 is reserved.
    pub fn new(id: u16) -> Option<Vlan> {
        (1..=4094).contains(&id).then_some(Vlan(id))
    }

    /// Its identifier.
    pub fn id(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Vlan;

    #[test]
    fn only_identifiers_of_vlans_are_taken() {
        assert_eq!(Vlan::new(0), None);
        assert_eq!(Vlan::new(1).map(Vlan::id), Some(1));
        assert_eq!(Vlan::new(4094).map(Vlan::id), Some(4094));
        assert_eq!(Vlan::new(4095), None);
        assert_eq!(Vlan::new(u16::MAX), None);
    }
}
