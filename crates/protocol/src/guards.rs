//! The protocol's rules by name, so that a test can take one away and see it missed.
//!
//! In a product build [`Guards`] is an empty value that always answers "yes" and costs nothing.
//! With the feature `weaken` (and in this crate's own tests) single guards can be removed.

macro_rules! guards {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One rule of DESIGN's "Who may run", "Detection" or output commit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(not(any(test, feature = "weaken")), allow(dead_code, unreachable_pub))]
        pub enum Guard { $($(#[$doc])* $name,)* }

        #[cfg(any(test, feature = "weaken"))]
        impl Guard {
            /// Every guard there is, in the order of the text.
            pub const ALL: &[Guard] = &[$(Guard::$name,)*];
        }
    };
}

guards! {
    /// No held byte leaves before the commit of the epoch that produced it.
    OutputCommit,
    /// At most one epoch is uncommitted behind the running one.
    Backpressure,
    /// An epoch that was ended in one term does not count in the next.
    SealOfTerm,
    /// An epoch that was ended for one session is not owed to the next.
    SealOfSession,
    /// The arbiter refuses a change against another generation.
    ArbiterCompares,
    /// The arbiter answers only what is durable.
    ArbiterDurable,
    /// A record names an incarnation, not a host.
    OwnIncarnation,
    /// Only a whole replica is named.
    HeirWhole,
    /// Only a tried replica is named.
    HeirTried,
    /// The runner holds all output while a naming is asked for.
    HoldBeforeNaming,
    /// Everything ever released is in an epoch that the replica has committed before it is named.
    NameCovers,
    /// Only commits of that incarnation in that session count.
    SessionCommits,
    /// *Heir = none* before a resync begins.
    NoneBeforeResync,
    /// *Heir = none* before anything uncommitted is released.
    NoneBeforeRelease,
    /// A host that claims neither commits nor releases nor vouches.
    Freeze,
    /// An heir claims only if it still holds the whole replica.
    ClaimWhole,
    /// A read of the old generation does not settle a naming.
    FenceNaming,
    /// A read of the old generation does not settle a claim.
    FenceClaim,
    /// Lower generations are ignored.
    LowerIgnored,
    /// Reading never permits: a host runs only after its own change to `running`.
    ReadNever,
    /// A claim is `claimed` first and `running` second.
    TwoSteps,
    /// A claim leaves the loser as heir.
    LoserStaysHeir,
    /// The loser keeps its state until it sees `running`.
    KeepUntilRunning,
    /// `running` sets *heir = none* in the same change.
    RunningClearsHeir,
    /// The heir may claim when a claim has stood longer than `T_c`.
    StaleClaim,
    /// A winner that cannot start hands the record back.
    HandBack,
    /// A cold claim needs a sidecar that lists the record's runner or heir.
    SidecarMatches,
    /// A cold claimant adds itself durably to its sidecar before it claims.
    SidecarAdds,
    /// The sidecar says `resyncing` before the first resync block.
    ResyncMark,
    /// A cold claim keeps the other host's named incarnation as heir.
    ColdKeepsHeir,
    /// A cold claim needs silence of `T_cold`.
    ColdSilence,
    /// The record's heir, when it answers and is whole, beats a cold boot.
    HeirBeatsCold,
    /// Only the record's heir beats a cold boot; any other replica is stale.
    OnlyHeirBeats,
    /// The primary passes nothing at age `T_p` or later.
    StopAtTp,
    /// Age counts from our own send time echoed back.
    OwnSendTime,
    /// The backup's silence begins no earlier than the last time it vouched for the runner.
    Lease,
    /// A host vouches for nobody but the record's runner and those that it fills itself.
    VouchForRunner,
    /// `T_p(1+ρ) < T_b(1−ρ)`.
    ClockRates,
    /// Heartbeats attest that the epoch loop moves.
    LoopMoves,
    /// A host whose own epoch loop stalls claims nothing.
    OwnLoop,
    /// Silence counts only while the observer itself ran on time.
    OwnLateness,
    /// Silence counts only after the observer drained its sockets.
    DrainFirst,
    /// A closed connection shortens the wait only where nothing is unheld.
    ClosedOnlyHeld,
    /// A runner changes its mode only when it is alone.
    ModeAlone,
    /// A backup goes by the mode in which its session began.
    ModeOfSession,
    /// Heartbeats go over every path there is.
    EveryPath,
    /// A link whose path is silent while others are heard is given up.
    SilentLane,
    /// Only a protected machine is switched over.
    SwitchProtected,
    /// The guest rests from the epoch on that is its last before a switchover.
    SwitchAtRest,
    /// The runner yields only when the epoch is committed with which its guest came to rest.
    SwitchCommitted,
    /// A runner freezes before it yields: it then goes on only after a claim that it won.
    SwitchFreezes,
    /// A rest that leads nowhere ends: the session is lost, or patience is.
    SwitchGivesUp,
    /// A runner that has yielded claims when the heir does not.
    SwitchTakesBack,
    /// A yield counts only in the session that filled the replica.
    YieldOfSession,
    /// A gone uplink is a reason to switch over only if the other side has a better one.
    UplinkThere,
    /// An uplink counts as gone, or as there, only when it has been so for `t_uplink`.
    UplinkSteady,
    /// No switchover for an uplink within `t_hold` of the term's beginning or the last attempt.
    UplinkHold,
}

/// The guards in force: all of them, except in a weakened protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Guards {
    #[cfg(any(test, feature = "weaken"))]
    removed: u64,
}

impl Guards {
    #[cfg(not(any(test, feature = "weaken")))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn on(self, _: Guard) -> bool {
        true
    }

    #[cfg(any(test, feature = "weaken"))]
    pub(crate) const fn on(self, guard: Guard) -> bool {
        self.removed & (1 << guard as u64) == 0
    }

    /// These guards without `guard`.
    #[cfg(any(test, feature = "weaken"))]
    #[must_use]
    pub const fn without(self, guard: Guard) -> Guards {
        Guards {
            removed: self.removed | (1 << guard as u64),
        }
    }

    /// Whether nothing was removed. The arbiter's check of a change's shape stands behind several
    /// of the hosts' guards and steps aside when one of those is being measured.
    pub(crate) fn complete(self) -> bool {
        self == Guards::default()
    }
}
