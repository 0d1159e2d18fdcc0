import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.AddWatchMode;
import org.apache.zookeeper.AsyncCallback;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Op;
import org.apache.zookeeper.OpResult;
import org.apache.zookeeper.WatchedEvent;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.Watcher.Event.EventType;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.admin.ZooKeeperAdmin;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Id;
import org.apache.zookeeper.data.Stat;
import org.apache.zookeeper.server.auth.DigestAuthenticationProvider;

/**
 * What a program does with ZooKeeper's Java client, through the deaths of three leaders.
 *
 * <p>Takes the servers' addresses. Writes "! ORDER" to have something done to the servers, and waits
 * for a line until it is. Ends with 0 and the line "all is well" if it is.
 */
public class JavaClient {
    static final int TIMEOUT_MS = 30_000;
    static final int DEADLINE_S = 60;
    static final List<ACL> OPEN = ZooDefs.Ids.OPEN_ACL_UNSAFE;

    final String servers;
    final BufferedReader in = new BufferedReader(new InputStreamReader(System.in));

    JavaClient(String servers) {
        this.servers = servers;
    }

    /** A session, and the events that its default watcher has heard. */
    static class Session implements Watcher, AutoCloseable {
        final BlockingQueue<WatchedEvent> events = new LinkedBlockingQueue<>();
        final CountDownLatch connected = new CountDownLatch(1);
        final ZooKeeper zk;
        volatile boolean expired;

        Session(String servers) throws Exception {
            zk = new ZooKeeper(servers, TIMEOUT_MS, this);
            check(connected.await(DEADLINE_S, TimeUnit.SECONDS), "connected");
        }

        Session(String servers, ZooKeeper other) throws Exception {
            zk = new ZooKeeper(servers, TIMEOUT_MS, this, other.getSessionId(), other.getSessionPasswd());
            check(connected.await(DEADLINE_S, TimeUnit.SECONDS), "connected");
        }

        @Override
        public void process(WatchedEvent event) {
            if (event.getType() != EventType.None) {
                events.add(event);
            } else if (event.getState() == KeeperState.Expired) {
                expired = true;
                connected.countDown();
            } else if (event.getState() == KeeperState.SyncConnected) {
                connected.countDown();
            }
        }

        void expect(EventType type, String path) throws Exception {
            WatchedEvent event = events.poll(DEADLINE_S, TimeUnit.SECONDS);
            check(event != null, "an event: " + type + " " + path);
            same(event.getType() + " " + event.getPath(), type + " " + path);
        }

        /** From here on the session sees what others were told before. */
        void sync() throws Exception {
            BlockingQueue<Integer> codes = new LinkedBlockingQueue<>();
            zk.sync("/", (code, path, context) -> codes.add(code), null);
            same(codes.poll(DEADLINE_S, TimeUnit.SECONDS), 0);
        }

        @Override
        public void close() throws Exception {
            zk.close();
        }
    }

    interface Part {
        void run() throws Exception;
    }

    interface Call<T> {
        T run() throws Exception;
    }

    static void check(boolean isRight, String what) {
        if (!isRight) {
            throw new AssertionError(what);
        }
    }

    static void same(Object found, Object expected) {
        check(expected.equals(found), "expected " + expected + ", found " + found);
    }

    static void fails(KeeperException.Code code, Call<?> call) throws Exception {
        try {
            call.run();
        } catch (KeeperException e) {
            same(e.code(), code);
            return;
        }
        throw new AssertionError("expected " + code);
    }

    /** Asks again as long as the connection is lost, as every program must. */
    static <T> T insist(Call<T> call) throws Exception {
        while (true) {
            try {
                return call.run();
            } catch (KeeperException.ConnectionLossException e) {
                // The client is looking for a server.
            }
        }
    }

    void order(String order) throws Exception {
        System.out.println("! " + order);
        same(in.readLine(), "done");
    }

    void part(String name, Part part) throws Exception {
        System.out.println(name);
        part.run();
    }

    void nodes() throws Exception {
        try (Session session = new Session(servers)) {
            ZooKeeper zk = session.zk;
            zk.create("/nodes", "a".getBytes(), OPEN, CreateMode.PERSISTENT);
            fails(KeeperException.Code.NODEEXISTS,
                () -> zk.create("/nodes", null, OPEN, CreateMode.PERSISTENT));
            Stat created = new Stat();
            zk.create("/nodes/null", null, OPEN, CreateMode.PERSISTENT, created);
            check(zk.getData("/nodes/null", false, null) == null, "null stays null");
            same(zk.exists("/nodes/null", false), created);
            same(zk.create("/nodes/n-", null, OPEN, CreateMode.PERSISTENT_SEQUENTIAL), "/nodes/n-0000000001");
            zk.create("/nodes/lease", null, OPEN, CreateMode.PERSISTENT_WITH_TTL, null, 3_600_000);
            zk.create("/nodes/container", null, OPEN, CreateMode.CONTAINER);
            same(zk.getAllChildrenNumber("/nodes"), 4);
            List<String> names = zk.getChildren("/nodes", false);
            Collections.sort(names);
            same(names, List.of("container", "lease", "n-0000000001", "null"));
            Stat stat = zk.setData("/nodes", "b".getBytes(), 0);
            same(stat.getVersion(), 1);
            same(stat.getNumChildren(), 4);
            fails(KeeperException.Code.BADVERSION, () -> zk.setData("/nodes", null, 0));
            fails(KeeperException.Code.NOTEMPTY, () -> { zk.delete("/nodes", -1); return null; });
            fails(KeeperException.Code.NONODE, () -> zk.getData("/none", false, null));
            zk.create("/nodes/ephemeral", null, OPEN, CreateMode.EPHEMERAL);
            fails(KeeperException.Code.NOCHILDRENFOREPHEMERALS,
                () -> zk.create("/nodes/ephemeral/child", null, OPEN, CreateMode.PERSISTENT));
            same(zk.getEphemerals(), List.of("/nodes/ephemeral"));
            same(zk.exists("/nodes/ephemeral", false).getEphemeralOwner(), zk.getSessionId());
            try (ZooKeeperAdmin admin = new ZooKeeperAdmin(servers, TIMEOUT_MS, event -> { })) {
                fails(KeeperException.Code.RECONFIGDISABLED,
                    () -> admin.reconfigure((String) null, "3", null, -1, null));
            }
        }
        try (Session session = new Session(servers)) {
            session.sync();
            check(session.zk.exists("/nodes/ephemeral", false) == null, "it ends with its session");
        }
    }

    void operationsInOrder() throws Exception {
        try (Session session = new Session(servers)) {
            ZooKeeper zk = session.zk;
            zk.create("/order", null, OPEN, CreateMode.PERSISTENT);
            int count = 2_000;
            List<Integer> versions = Collections.synchronizedList(new ArrayList<>());
            List<String> reads = Collections.synchronizedList(new ArrayList<>());
            CountDownLatch answered = new CountDownLatch(2 * count);
            AsyncCallback.StatCallback written = (code, path, context, stat) -> {
                same(code, 0);
                same(stat.getVersion(), (Integer) context + 1);
                versions.add((Integer) context);
                answered.countDown();
            };
            AsyncCallback.DataCallback read = (code, path, context, data, stat) -> {
                same(code, 0);
                reads.add(new String(data));
                same(versions.size(), (Integer) context + 1);
                answered.countDown();
            };
            for (int i = 0; i < count; i++) {
                zk.setData("/order", String.valueOf(i).getBytes(), i, written, i);
                zk.getData("/order", false, read, i);
            }
            check(answered.await(DEADLINE_S, TimeUnit.SECONDS), "all is answered, in order");
            for (int i = 0; i < count; i++) {
                same(versions.get(i), i);
                same(reads.get(i), String.valueOf(i));
            }
        }
    }

    void multi() throws Exception {
        try (Session session = new Session(servers)) {
            ZooKeeper zk = session.zk;
            List<OpResult> results = zk.transaction()
                .create("/multi", "0".getBytes(), OPEN, CreateMode.PERSISTENT)
                .create("/multi/n-", null, OPEN, CreateMode.EPHEMERAL_SEQUENTIAL)
                .setData("/multi", "1".getBytes(), 0)
                .check("/multi", 1)
                .delete("/multi/n-0000000000", -1)
                .commit();
            same(((OpResult.CreateResult) results.get(1)).getPath(), "/multi/n-0000000000");
            same(((OpResult.SetDataResult) results.get(2)).getStat().getVersion(), 1);
            try {
                zk.multi(List.of(
                    Op.setData("/multi", "2".getBytes(), 1),
                    Op.check("/multi", 7),
                    Op.delete("/multi", -1)));
                throw new AssertionError("the check fails");
            } catch (KeeperException.BadVersionException e) {
                int[] codes = e.getResults().stream()
                    .mapToInt(result -> ((OpResult.ErrorResult) result).getErr()).toArray();
                same(codes[0], KeeperException.Code.OK.intValue());
                same(codes[1], KeeperException.Code.BADVERSION.intValue());
                same(codes[2], KeeperException.Code.RUNTIMEINCONSISTENCY.intValue());
            }
            same(new String(zk.getData("/multi", false, null)), "1");
            List<OpResult> reads = zk.multi(List.of(
                Op.getData("/multi"), Op.getChildren("/multi"), Op.getData("/none")));
            same(new String(((OpResult.GetDataResult) reads.get(0)).getData()), "1");
            same(((OpResult.GetChildrenResult) reads.get(1)).getChildren(), List.of());
            same(((OpResult.ErrorResult) reads.get(2)).getErr(), KeeperException.Code.NONODE.intValue());
        }
    }

    void chroot() throws Exception {
        try (Session all = new Session(servers)) {
            all.zk.create("/chroot", null, OPEN, CreateMode.PERSISTENT);
            try (Session below = new Session(servers + "/chroot")) {
                below.sync();
                same(below.zk.getChildren("/", true), List.of());
                below.zk.addWatch("/", AddWatchMode.PERSISTENT_RECURSIVE);
                same(below.zk.create("/child", null, OPEN, CreateMode.PERSISTENT), "/child");
                all.zk.setData("/chroot/child", null, -1);
                below.expect(EventType.NodeCreated, "/child");
                below.expect(EventType.NodeChildrenChanged, "/");
                below.expect(EventType.NodeDataChanged, "/child");
                same(below.zk.getChildren("/", false), List.of("child"));
            }
            all.sync();
            check(all.zk.exists("/chroot/child", false) != null, "it is below");
        }
    }

    void access() throws Exception {
        String digest = DigestAuthenticationProvider.generateDigest("alice:secret");
        List<ACL> hers = List.of(new ACL(ZooDefs.Perms.ALL, new Id("digest", digest)));
        try (Session alice = new Session(servers); Session bob = new Session(servers)) {
            alice.zk.addAuthInfo("digest", "alice:secret".getBytes());
            alice.zk.create("/hers", "secret".getBytes(), ZooDefs.Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
            same(alice.zk.getACL("/hers", new Stat()), hers);
            bob.sync();
            fails(KeeperException.Code.NOAUTH, () -> bob.zk.getData("/hers", false, null));
            fails(KeeperException.Code.NOAUTH, () -> bob.zk.setData("/hers", null, -1));
            fails(KeeperException.Code.NOAUTH, () -> bob.zk.getACL("/hers", null));
            fails(KeeperException.Code.NOAUTH, () -> bob.zk.setACL("/hers", OPEN, -1));
            fails(KeeperException.Code.INVALIDACL,
                () -> bob.zk.create("/mine", null, ZooDefs.Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT));
            bob.zk.addAuthInfo("digest", "alice:secret".getBytes());
            same(new String(bob.zk.getData("/hers", false, null)), "secret");
            order("kill the leader");
            same(new String(insist(() -> bob.zk.getData("/hers", false, null))), "secret");
            insist(() -> alice.zk.setData("/hers", "secret".getBytes(), -1));
            same(alice.zk.setACL("/hers", OPEN, 0).getAversion(), 1);
            order("start the killed server");
            try (Session other = new Session(servers)) {
                other.sync();
                same(new String(other.zk.getData("/hers", false, null)), "secret");
            }
        }
    }

    void survival() throws Exception {
        try (Session session = new Session(servers); Session other = new Session(servers)) {
            ZooKeeper zk = session.zk;
            long id = zk.getSessionId();
            zk.create("/survival", "0".getBytes(), OPEN, CreateMode.PERSISTENT);
            zk.create("/survival/ephemeral", null, OPEN, CreateMode.EPHEMERAL);
            zk.create("/survival/deep", null, OPEN, CreateMode.PERSISTENT);
            zk.create("/other", null, OPEN, CreateMode.PERSISTENT);
            Stat ephemeral = zk.exists("/survival/ephemeral", false);
            zk.addWatch("/survival", AddWatchMode.PERSISTENT_RECURSIVE);
            zk.addWatch("/other", AddWatchMode.PERSISTENT);
            for (int round = 1; round <= 3; round++) {
                int number = round;
                BlockingQueue<WatchedEvent> data = new LinkedBlockingQueue<>();
                BlockingQueue<WatchedEvent> children = new LinkedBlockingQueue<>();
                BlockingQueue<WatchedEvent> missing = new LinkedBlockingQueue<>();
                Watcher ofData = event -> keep(data, event);
                Watcher ofChildren = event -> keep(children, event);
                Watcher ofMissing = event -> keep(missing, event);
                insist(() -> zk.getData("/survival", ofData, null));
                insist(() -> zk.getChildren("/other", ofChildren));
                insist(() -> zk.exists("/new-" + number, ofMissing));
                order("kill the leader");
                // A write without an answer may have been done, so that only one that may be done
                // twice can be asked for again.
                insist(() -> other.zk.setData("/nodes", null, -1));
                other.zk.setData("/survival", String.valueOf(number).getBytes(), number - 1);
                other.zk.setData("/survival/deep", null, -1);
                other.zk.create("/other/n-", null, OPEN, CreateMode.PERSISTENT_SEQUENTIAL);
                other.zk.create("/new-" + number, null, OPEN, CreateMode.PERSISTENT);
                session.expect(EventType.NodeDataChanged, "/survival");
                session.expect(EventType.NodeDataChanged, "/survival/deep");
                session.expect(EventType.NodeChildrenChanged, "/other");
                once(data, EventType.NodeDataChanged, "/survival");
                once(children, EventType.NodeChildrenChanged, "/other");
                once(missing, EventType.NodeCreated, "/new-" + number);
                same(zk.getSessionId(), id);
                same(other.zk.exists("/survival/ephemeral", false), ephemeral);
                order("start the killed server");
            }
            check(!session.expired && !other.expired, "nobody's session is over");
            check(session.events.isEmpty(), "nothing is told twice: " + session.events);
        }
    }

    static void keep(BlockingQueue<WatchedEvent> events, WatchedEvent event) {
        if (event.getType() != EventType.None) {
            events.add(event);
        }
    }

    static void once(BlockingQueue<WatchedEvent> events, EventType type, String path) throws Exception {
        WatchedEvent event = events.poll(DEADLINE_S, TimeUnit.SECONDS);
        check(event != null, "an event: " + type + " " + path);
        same(event.getType() + " " + event.getPath(), type + " " + path);
        check(events.isEmpty(), "once: " + events);
    }

    void ends() throws Exception {
        Session first = new Session(servers);
        first.close();
        try (Session late = new Session(servers, first.zk)) {
            check(late.expired, "a closed session is over");
        }
    }

    public static void main(String[] arguments) throws Exception {
        JavaClient client = new JavaClient(arguments[0]);
        client.part("nodes", client::nodes);
        client.part("operationsInOrder", client::operationsInOrder);
        client.part("multi", client::multi);
        client.part("chroot", client::chroot);
        client.part("access", client::access);
        client.part("survival", client::survival);
        client.part("ends", client::ends);
        System.out.println("all is well");
        System.exit(0);
    }
}
