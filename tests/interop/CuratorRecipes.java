import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.api.transaction.CuratorTransactionResult;
import org.apache.curator.framework.recipes.atomic.AtomicValue;
import org.apache.curator.framework.recipes.atomic.CachedAtomicLong;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicInteger;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicLong;
import org.apache.curator.framework.recipes.atomic.PromotedToLock;
import org.apache.curator.framework.recipes.barriers.DistributedBarrier;
import org.apache.curator.framework.recipes.barriers.DistributedDoubleBarrier;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.cache.CuratorCacheListener;
import org.apache.curator.framework.recipes.cache.NodeCache;
import org.apache.curator.framework.recipes.cache.PathChildrenCache;
import org.apache.curator.framework.recipes.cache.TreeCache;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.leader.LeaderSelector;
import org.apache.curator.framework.recipes.leader.LeaderSelectorListenerAdapter;
import org.apache.curator.framework.recipes.locks.InterProcessLock;
import org.apache.curator.framework.recipes.locks.InterProcessMultiLock;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreMutex;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreV2;
import org.apache.curator.framework.recipes.locks.Lease;
import org.apache.curator.framework.recipes.locks.Revoker;
import org.apache.curator.framework.recipes.nodes.GroupMember;
import org.apache.curator.framework.recipes.nodes.PersistentNode;
import org.apache.curator.framework.recipes.nodes.PersistentTtlNode;
import org.apache.curator.framework.recipes.queue.DistributedDelayQueue;
import org.apache.curator.framework.recipes.queue.DistributedIdQueue;
import org.apache.curator.framework.recipes.queue.DistributedPriorityQueue;
import org.apache.curator.framework.recipes.queue.DistributedQueue;
import org.apache.curator.framework.recipes.queue.QueueBuilder;
import org.apache.curator.framework.recipes.queue.QueueConsumer;
import org.apache.curator.framework.recipes.queue.QueueSerializer;
import org.apache.curator.framework.recipes.queue.SimpleDistributedQueue;
import org.apache.curator.framework.recipes.shared.SharedCount;
import org.apache.curator.framework.recipes.shared.SharedValue;
import org.apache.curator.framework.recipes.watch.PersistentWatcher;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.BoundedExponentialBackoffRetry;
import org.apache.curator.retry.RetryNTimes;
import org.apache.zookeeper.AddWatchMode;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.WatchedEvent;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.Watcher.Event.EventType;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Stat;

/**
 * What a program does with Apache Curator, its framework and its recipes, through the deaths of
 * leaders.
 *
 * <p>Takes the servers' addresses. Writes "! ORDER" to have something done to the servers, and waits
 * for a line until it is. Ends with 0 and the line "all is well" if it is.
 */
public class CuratorRecipes {
    static final int TIMEOUT_MS = 30_000;
    static final int DEADLINE_S = 60;
    /** How long is waited for what must not come. */
    static final int NEVER_MS = 200;

    final String servers;
    final BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    final ExecutorService threads = Executors.newCachedThreadPool();
    /** What was heard of the connections of all clients. */
    final List<ConnectionState> states = new CopyOnWriteArrayList<>();
    final CuratorFramework a;
    final CuratorFramework b;

    CuratorRecipes(String servers) throws Exception {
        this.servers = servers;
        a = open(builder());
        b = open(builder());
    }

    CuratorFrameworkFactory.Builder builder() {
        return CuratorFrameworkFactory.builder().connectString(servers).sessionTimeoutMs(TIMEOUT_MS)
            .connectionTimeoutMs(TIMEOUT_MS).retryPolicy(new BoundedExponentialBackoffRetry(50, 500, 30));
    }

    CuratorFramework open(CuratorFrameworkFactory.Builder builder) throws Exception {
        CuratorFramework client = builder.build();
        client.getConnectionStateListenable().addListener((of, state) -> states.add(state));
        client.start();
        check(client.blockUntilConnected(DEADLINE_S, TimeUnit.SECONDS), "connected");
        return client;
    }

    interface Part {
        void run() throws Exception;
    }

    static void check(boolean isRight, String what) {
        if (!isRight) {
            throw new AssertionError(what);
        }
    }

    static void same(Object found, Object expected) {
        check(expected.equals(found), "expected " + expected + ", found " + found);
    }

    static void until(String what, Callable<Boolean> condition) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(DEADLINE_S);
        while (!condition.call()) {
            check(System.nanoTime() < deadline, "waited in vain for: " + what);
            TimeUnit.MILLISECONDS.sleep(10);
        }
    }

    static void fails(KeeperException.Code code, Part part) throws Exception {
        try {
            part.run();
        } catch (KeeperException e) {
            same(e.code(), code);
            return;
        }
        throw new AssertionError("expected " + code);
    }

    static byte[] bytes(Object text) {
        return String.valueOf(text).getBytes();
    }

    static String text(byte[] bytes) {
        return new String(bytes);
    }

    void order(String order) throws Exception {
        System.out.println("! " + order);
        same(in.readLine(), "done");
    }

    void part(String name, Part part) throws Exception {
        System.out.println(name);
        part.run();
    }

    /** What the framework makes of nodes. */
    void nodes() throws Exception {
        a.create().creatingParentsIfNeeded().forPath("/nodes/deep/down", bytes("x"));
        same(a.create().orSetData().forPath("/nodes/deep/down", bytes("y")), "/nodes/deep/down");
        Stat stat = new Stat();
        same(text(a.getData().storingStatIn(stat).forPath("/nodes/deep/down")), "y");
        same(stat.getVersion(), 1);
        a.create().creatingParentContainersIfNeeded().withProtection()
            .withMode(CreateMode.EPHEMERAL_SEQUENTIAL).forPath("/nodes/container/n-");
        String name = a.getChildren().forPath("/nodes/container").get(0);
        check(name.startsWith("_c_") && name.endsWith("-n-0000000000"), name);
        a.create().withTtl(3_600_000).withMode(CreateMode.PERSISTENT_WITH_TTL).forPath("/nodes/ttl");
        a.create().storingStatIn(stat).forPath("/nodes/stat", bytes("12345"));
        same(stat.getDataLength(), 5);
        same(a.checkExists().forPath("/nodes/stat"), stat);
        same(a.create().idempotent().forPath("/nodes/stat", bytes("12345")), "/nodes/stat");
        same(a.setData().idempotent().withVersion(0).forPath("/nodes/stat", bytes("1")).getVersion(), 1);
        same(a.setData().idempotent().withVersion(0).forPath("/nodes/stat", bytes("1")).getVersion(), 1);
        a.delete().idempotent().forPath("/nodes/none");
        a.create().compressed().forPath("/nodes/zip", bytes("zip".repeat(1000)));
        same(text(a.getData().decompressed().forPath("/nodes/zip")), "zip".repeat(1000));
        check(a.getData().forPath("/nodes/zip").length < 1000, "it is compressed");

        CountDownLatch answered = new CountDownLatch(100);
        for (int i = 0; i < 100; i++) {
            a.create().inBackground((of, event) -> {
                same(event.getResultCode(), 0);
                answered.countDown();
            }).forPath("/nodes/deep/" + i);
        }
        check(answered.await(DEADLINE_S, TimeUnit.SECONDS), "all is created in the background");
        fails(KeeperException.Code.NODEEXISTS, () -> a.create().forPath("/nodes"));
        fails(KeeperException.Code.NOTEMPTY, () -> a.delete().forPath("/nodes"));
        fails(KeeperException.Code.BADVERSION, () -> a.delete().withVersion(7).forPath("/nodes/ttl"));
        fails(KeeperException.Code.NONODE, () -> a.getData().forPath("/none"));
        a.delete().quietly().forPath("/none");
        b.sync().forPath("/nodes");
        same(b.getChildren().forPath("/nodes/deep").size(), 101);
        b.delete().guaranteed().deletingChildrenIfNeeded().forPath("/nodes/deep");
        check(b.checkExists().forPath("/nodes/deep") == null, "it is gone with its children");
        until("the ensemble's configuration", () -> !a.getCurrentConfig().getAllMembers().isEmpty());
        same(a.getCurrentConfig().getAllMembers().size(), 3);
    }

    void transactions() throws Exception {
        List<CuratorTransactionResult> results = a.transaction().forOperations(
            a.transactionOp().create().forPath("/tx", bytes("0")),
            a.transactionOp().create().withMode(CreateMode.PERSISTENT_SEQUENTIAL).forPath("/tx/n-"),
            a.transactionOp().setData().withVersion(0).forPath("/tx", bytes("1")),
            a.transactionOp().check().withVersion(1).forPath("/tx"),
            a.transactionOp().delete().forPath("/tx/n-0000000000"));
        same(results.get(1).getResultPath(), "/tx/n-0000000000");
        same(results.get(2).getResultStat().getVersion(), 1);
        fails(KeeperException.Code.BADVERSION, () -> a.transaction().forOperations(
            a.transactionOp().setData().forPath("/tx", bytes("2")),
            a.transactionOp().check().withVersion(7).forPath("/tx")));
        same(text(a.getData().forPath("/tx")), "1");
        fails(KeeperException.Code.NODEEXISTS, () -> a.transaction().forOperations(
            a.transactionOp().create().forPath("/tx/x"), a.transactionOp().create().forPath("/tx")));
        same(a.getChildren().forPath("/tx"), List.of());
    }

    void access() throws Exception {
        try (CuratorFramework alice = open(builder().authorization("digest", bytes("alice:secret")));
            CuratorFramework again = open(builder().authorization("digest", bytes("alice:secret")))) {
            List<ACL> hers = ZooDefs.Ids.CREATOR_ALL_ACL;
            alice.create().creatingParentsIfNeeded().withACL(hers).forPath("/hers", bytes("secret"));
            alice.create().withACL(hers).forPath("/hers/child");
            b.sync().forPath("/hers");
            fails(KeeperException.Code.NOAUTH, () -> b.getData().forPath("/hers"));
            fails(KeeperException.Code.NOAUTH, () -> b.getChildren().forPath("/hers"));
            fails(KeeperException.Code.NOAUTH, () -> b.setData().forPath("/hers", bytes("x")));
            fails(KeeperException.Code.NOAUTH, () -> b.create().forPath("/hers/mine"));
            fails(KeeperException.Code.NOAUTH, () -> b.delete().forPath("/hers/child"));
            fails(KeeperException.Code.NOAUTH, () -> b.getACL().forPath("/hers"));
            fails(KeeperException.Code.NOAUTH,
                () -> b.setACL().withACL(ZooDefs.Ids.OPEN_ACL_UNSAFE).forPath("/hers"));
            fails(KeeperException.Code.NOAUTH, () -> b.transaction().forOperations(
                b.transactionOp().create().forPath("/not-done"),
                b.transactionOp().setData().forPath("/hers", bytes("x"))));
            check(b.checkExists().forPath("/not-done") == null, "nothing is done");
            again.sync().forPath("/hers");
            same(text(again.getData().forPath("/hers")), "secret");
            same(again.getACL().forPath("/hers").get(0).getId().getScheme(), "digest");
            again.setACL().withVersion(0).withACL(ZooDefs.Ids.READ_ACL_UNSAFE).forPath("/hers");
            b.sync().forPath("/hers");
            same(text(b.getData().forPath("/hers")), "secret");
        }
    }

    /** Events of one watcher, without those of connections. */
    static class Events implements Watcher {
        final Queue<String> events = new ConcurrentLinkedQueue<>();

        @Override
        public void process(WatchedEvent event) {
            if (event.getType() != EventType.None) {
                events.add(event.getType() + " " + event.getPath());
            }
        }

        void expect(String event) throws Exception {
            until(event, () -> !events.isEmpty());
            same(events.remove(), event);
        }
    }

    void namespaces() throws Exception {
        CuratorFramework below = a.usingNamespace("space");
        Events events = new Events();
        below.watchers().add().withMode(AddWatchMode.PERSISTENT_RECURSIVE)
            .usingWatcher(events).forPath("/");
        below.create().creatingParentsIfNeeded().forPath("/x/y", bytes("1"));
        below.getData().usingWatcher(events).forPath("/x/y");
        b.sync().forPath("/");
        same(text(b.getData().forPath("/space/x/y")), "1");
        events.expect("NodeCreated /x");
        events.expect("NodeCreated /x/y");
        b.setData().forPath("/space/x/y", bytes("2"));
        events.expect("NodeDataChanged /x/y");
        try (CuratorFramework rooted = open(builder().connectString(servers + "/space/x"))) {
            same(text(rooted.getData().forPath("/y")), "2");
            rooted.create().forPath("/z");
        }
        until("an event of either watcher", () -> events.events.contains("NodeCreated /x/z"));
        below.delete().deletingChildrenIfNeeded().forPath("/x");
        until("the last event", () -> events.events.contains("NodeDeleted /x"));
    }

    /** Watches of every kind, through the death of a leader. */
    void watches() throws Exception {
        a.create().creatingParentsIfNeeded().forPath("/watched/child");
        Events persistent = new Events();
        Events recursive = new Events();
        Events once = new Events();
        a.watchers().add().withMode(AddWatchMode.PERSISTENT).usingWatcher(persistent).forPath("/watched");
        PersistentWatcher watcher = new PersistentWatcher(b, "/watched", true);
        watcher.getListenable().addListener(recursive);
        CountDownLatch isSet = new CountDownLatch(1);
        watcher.getResetListenable().addListener(isSet::countDown);
        watcher.start();
        check(isSet.await(DEADLINE_S, TimeUnit.SECONDS), "the watcher is set");
        a.checkExists().usingWatcher(once).forPath("/watched/later");
        order("kill the leader");
        b.setData().forPath("/watched/child", bytes("1"));
        recursive.expect("NodeDataChanged /watched/child");
        a.setData().forPath("/watched", bytes("1"));
        until("a persistent watch", () -> persistent.events.contains("NodeDataChanged /watched"));
        until("a recursive watch", () -> recursive.events.contains("NodeDataChanged /watched"));
        b.create().orSetData().forPath("/watched/later");
        until("a watch that fires once", () -> once.events.contains("NodeCreated /watched/later"));
        until("a persistent watch", () -> persistent.events.contains("NodeChildrenChanged /watched"));
        order("start the killed server");
        a.watchers().removeAll().forPath("/watched");
        watcher.close();
    }

    static Map<String, String> content(CuratorCache cache) {
        Map<String, String> content = new ConcurrentHashMap<>();
        cache.stream().forEach(node -> content.put(node.getPath(), text(node.getData())));
        return content;
    }

    /** Caches of every kind at one client and one node, which disturb each other before ZooKeeper 3.9. */
    void caches() throws Exception {
        a.create().creatingParentsIfNeeded().forPath("/cached", bytes("0"));
        for (int i = 0; i < 50; i++) {
            a.create().creatingParentsIfNeeded().forPath("/cached/" + i + "/leaf", bytes(i));
        }
        Queue<String> told = new ConcurrentLinkedQueue<>();
        try (CuratorCache cache = CuratorCache.build(b, "/cached");
            CuratorCache node = CuratorCache.build(b, "/cached", CuratorCache.Options.SINGLE_NODE_CACHE);
            TreeCache tree = new TreeCache(b, "/cached");
            PathChildrenCache children = new PathChildrenCache(b, "/cached", true);
            NodeCache one = new NodeCache(b, "/cached")) {
            CountDownLatch filled = new CountDownLatch(1);
            cache.listenable().addListener(CuratorCacheListener.builder()
                .forInitialized(filled::countDown)
                .forDeletes(data -> told.add("deleted " + data.getPath())).build());
            cache.start();
            node.start();
            tree.start();
            children.start(PathChildrenCache.StartMode.BUILD_INITIAL_CACHE);
            one.start(true);
            check(filled.await(DEADLINE_S, TimeUnit.SECONDS), "the cache is filled");
            same(cache.size(), 101);
            same(children.getCurrentData().size(), 50);
            order("kill the leader");
            a.setData().forPath("/cached", bytes("1"));
            a.delete().guaranteed().deletingChildrenIfNeeded().forPath("/cached/7");
            a.create().orSetData().forPath("/cached/new", bytes("new"));
            for (int i = 10; i < 50; i++) {
                a.setData().forPath("/cached/" + i + "/leaf", bytes(-i));
            }
            until("the cache is right", () -> {
                Map<String, String> content = content(cache);
                return content.size() == 100 && "1".equals(content.get("/cached"))
                    && "new".equals(content.get("/cached/new"))
                    && "-49".equals(content.get("/cached/49/leaf")) && "9".equals(content.get("/cached/9/leaf"));
            });
            until("it has told what is gone",
                () -> told.containsAll(List.of("deleted /cached/7", "deleted /cached/7/leaf")));
            until("the cache of one node is right", () -> "1".equals(content(node).get("/cached")));
            until("the tree is right", () -> tree.getCurrentChildren("/cached").size() == 50
                && tree.getCurrentData("/cached/7") == null
                && "-49".equals(text(tree.getCurrentData("/cached/49/leaf").getData())));
            until("the children are right", () -> children.getCurrentData().size() == 50
                && children.getCurrentData("/cached/new") != null);
            until("the node is right", () -> "1".equals(text(one.getCurrentData().getData())));
            order("start the killed server");
        }
    }

    /** One holds a lock, the other does not get it before it is given back. */
    static void excludes(InterProcessLock first, InterProcessLock second) throws Exception {
        check(first.acquire(DEADLINE_S, TimeUnit.SECONDS), "it is free");
        check(!second.acquire(NEVER_MS, TimeUnit.MILLISECONDS), "it excludes");
        first.release();
        check(second.acquire(DEADLINE_S, TimeUnit.SECONDS), "it is handed over");
        second.release();
    }

    void locks() throws Exception {
        excludes(new InterProcessMutex(a, "/locks/m"), new InterProcessMutex(b, "/locks/m"));
        excludes(new InterProcessSemaphoreMutex(a, "/locks/s"), new InterProcessSemaphoreMutex(b, "/locks/s"));
        excludes(new InterProcessMultiLock(a, List.of("/locks/m", "/locks/n")),
            new InterProcessMultiLock(b, List.of("/locks/n")));
        InterProcessReadWriteLock ofA = new InterProcessReadWriteLock(a, "/locks/rw");
        InterProcessReadWriteLock ofB = new InterProcessReadWriteLock(b, "/locks/rw");
        excludes(ofA.writeLock(), ofB.writeLock());
        excludes(ofA.writeLock(), ofB.readLock());
        excludes(ofA.readLock(), ofB.writeLock());
        ofA.writeLock().acquire();
        ofA.readLock().acquire();
        ofA.writeLock().release();
        check(ofB.readLock().acquire(DEADLINE_S, TimeUnit.SECONDS), "a writer has become a reader");
        ofA.readLock().release();
        ofB.readLock().release();

        InterProcessSemaphoreV2 leasesOfA = new InterProcessSemaphoreV2(a, "/locks/leases", 3);
        InterProcessSemaphoreV2 leasesOfB = new InterProcessSemaphoreV2(b, "/locks/leases", 3);
        Collection<Lease> two = leasesOfA.acquire(2);
        Lease third = leasesOfB.acquire();
        check(leasesOfB.acquire(NEVER_MS, TimeUnit.MILLISECONDS) == null, "there are three");
        InterProcessMutex held = new InterProcessMutex(a, "/locks/held");
        InterProcessMutex wanted = new InterProcessMutex(b, "/locks/held");
        AtomicInteger asked = new AtomicInteger();
        held.makeRevocable(of -> asked.incrementAndGet());
        held.acquire();
        held.acquire();
        order("kill the leader");
        check(!wanted.acquire(NEVER_MS, TimeUnit.MILLISECONDS), "it still excludes");
        check(leasesOfB.acquire(NEVER_MS, TimeUnit.MILLISECONDS) == null, "there are still three");
        check(held.isAcquiredInThisProcess(), "it is still held");
        Revoker.attemptRevoke(b, held.getParticipantNodes().iterator().next());
        until("its holder is asked to give it back", () -> asked.get() > 0);
        Future<Boolean> next = threads.submit(() -> wanted.acquire(DEADLINE_S, TimeUnit.SECONDS));
        until("somebody waits", () -> held.getParticipantNodes().size() == 2);
        held.release();
        check(!next.isDone(), "it is held twice");
        held.release();
        check(next.get(), "it is handed over");
        leasesOfA.returnAll(two);
        Lease fourth = leasesOfB.acquire(DEADLINE_S, TimeUnit.SECONDS);
        check(fourth != null, "a lease is free again");
        leasesOfB.returnAll(List.of(third, fourth));
        order("start the killed server");
    }

    void leaders() throws Exception {
        LeaderLatch first = new LeaderLatch(a, "/leaders/latch", "a");
        LeaderLatch second = new LeaderLatch(b, "/leaders/latch", "b");
        first.start();
        check(first.await(DEADLINE_S, TimeUnit.SECONDS), "the first leads");
        second.start();
        until("both take part", () -> first.getParticipants().size() == 2);
        same(second.getLeader().getId(), "a");
        AtomicInteger together = new AtomicInteger();
        AtomicInteger most = new AtomicInteger();
        Map<String, AtomicInteger> turns = Map.of("a", new AtomicInteger(), "b", new AtomicInteger());
        List<LeaderSelector> selectors = new ArrayList<>();
        for (Map.Entry<String, CuratorFramework> one : Map.of("a", a, "b", b).entrySet()) {
            LeaderSelector selector = new LeaderSelector(one.getValue(), "/leaders/selector",
                new LeaderSelectorListenerAdapter() {
                    @Override
                    public void takeLeadership(CuratorFramework client) {
                        most.accumulateAndGet(together.incrementAndGet(), Math::max);
                        turns.get(one.getKey()).incrementAndGet();
                        together.decrementAndGet();
                    }
                });
            selector.autoRequeue();
            selector.start();
            selectors.add(selector);
        }
        until("each has its turns", () -> turns.values().stream().allMatch(some -> some.get() >= 3));
        order("kill the leader");
        int before = turns.get("a").get();
        until("turns go on", () -> turns.get("a").get() >= before + 3);
        until("one latch leads", () -> first.hasLeadership() != second.hasLeadership());
        selectors.forEach(LeaderSelector::close);
        same(most.get(), 1);
        boolean firstLed = first.hasLeadership();
        (firstLed ? first : second).close();
        LeaderLatch left = firstLed ? second : first;
        check(left.await(DEADLINE_S, TimeUnit.SECONDS), "the other one leads");
        left.close();
        order("start the killed server");
    }

    void counters() throws Exception {
        try (SharedCount ofA = new SharedCount(a, "/counters/shared", 1);
            SharedCount ofB = new SharedCount(b, "/counters/shared", 1);
            SharedValue value = new SharedValue(a, "/counters/value", bytes("seed"))) {
            ofA.start();
            ofB.start();
            value.start();
            ofA.setCount(2);
            until("the other one sees it", () -> ofB.getCount() == 2);
            check(ofB.trySetCount(ofB.getVersionedValue(), 3), "nobody was faster");
            until("so does this one", () -> ofA.getCount() == 3);
            same(text(value.getValue()), "seed");
            check(value.trySetValue(value.getVersionedValue(), bytes("new")), "nobody was faster");
        }
        DistributedAtomicInteger number = new DistributedAtomicInteger(a, "/counters/int", new RetryNTimes(10, 10));
        check(number.initialize(5), "it is new");
        check(!number.initialize(6), "it is not new any more");
        same(number.compareAndSet(5, 7).succeeded(), true);
        same(number.compareAndSet(5, 8).succeeded(), false);
        same(number.get().postValue(), 7);
        CachedAtomicLong ids = new CachedAtomicLong(
            new DistributedAtomicLong(b, "/counters/ids", new RetryNTimes(10, 10)), 10);
        for (long id = 1; id <= 25; id++) {
            same(ids.next().postValue(), id);
        }

        int adders = 6;
        int each = 20;
        PromotedToLock lock = PromotedToLock.builder().lockPath("/counters/lock")
            .timeout(DEADLINE_S, TimeUnit.SECONDS).retryPolicy(new RetryNTimes(100, 10)).build();
        List<Future<Integer>> sums = new ArrayList<>();
        for (int i = 0; i < adders; i++) {
            CuratorFramework client = i % 2 == 0 ? a : b;
            sums.add(threads.submit(() -> {
                int done = 0;
                for (int k = 0; k < each; k++) {
                    AtomicValue<Long> added = new DistributedAtomicLong(
                        client, "/counters/sum", new RetryNTimes(3, 1), lock).increment();
                    done += added.succeeded() ? 1 : 0;
                }
                return done;
            }));
        }
        until("some are added", () -> {
            byte[] sum = a.checkExists().forPath("/counters/sum") == null
                ? new byte[0] : a.getData().forPath("/counters/sum");
            return sum.length == 8 && sum[7] > 10;
        });
        order("kill the leader");
        int done = 0;
        for (Future<Integer> sum : sums) {
            done += sum.get(DEADLINE_S, TimeUnit.SECONDS);
        }
        a.sync().forPath("/counters");
        long sum = new DistributedAtomicLong(a, "/counters/sum", new RetryNTimes(3, 1)).get().postValue();
        // Whoever has lost its connection adds again, or does not know that it has.
        check(done <= sum && sum <= done + adders, done + " additions, and the sum is " + sum);
        check(done >= adders * each - adders, done + " of " + adders * each + " additions");
        order("start the killed server");
    }

    static final QueueSerializer<String> TEXTS = new QueueSerializer<>() {
        @Override
        public byte[] serialize(String item) {
            return bytes(item);
        }

        @Override
        public String deserialize(byte[] bytes) {
            return text(bytes);
        }
    };

    /** Takes items, and knows them. */
    static class Consumer implements QueueConsumer<String> {
        final List<String> items = new CopyOnWriteArrayList<>();

        @Override
        public void consumeMessage(String item) {
            items.add(item);
        }

        @Override
        public void stateChanged(CuratorFramework client, ConnectionState state) {}
    }

    void queues() throws Exception {
        SimpleDistributedQueue simple = new SimpleDistributedQueue(a, "/queues/simple");
        for (int i = 0; i < 20; i++) {
            simple.offer(bytes(i));
        }
        SimpleDistributedQueue other = new SimpleDistributedQueue(b, "/queues/simple");
        b.sync().forPath("/queues");
        for (int i = 0; i < 20; i++) {
            same(text(other.poll(DEADLINE_S, TimeUnit.SECONDS)), String.valueOf(i));
        }
        Future<byte[]> taken = threads.submit(other::take);
        simple.offer(bytes("last"));
        same(text(taken.get(DEADLINE_S, TimeUnit.SECONDS)), "last");

        Consumer byPriority = new Consumer();
        DistributedPriorityQueue<String> in =
            QueueBuilder.builder(a, null, TEXTS, "/queues/priority").buildPriorityQueue(0);
        in.start();
        for (int i = 9; i >= 0; i--) {
            in.put(String.valueOf(i), i);
        }
        check(in.flushPuts(DEADLINE_S, TimeUnit.SECONDS), "all is there");
        b.sync().forPath("/queues");
        DistributedPriorityQueue<String> out =
            QueueBuilder.builder(b, byPriority, TEXTS, "/queues/priority").buildPriorityQueue(0);
        out.start();
        until("all is taken", () -> byPriority.items.size() == 10);
        same(byPriority.items, List.of("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"));
        out.close();
        in.close();

        Consumer delayed = new Consumer();
        DistributedDelayQueue<String> delay =
            QueueBuilder.builder(a, delayed, TEXTS, "/queues/delay").buildDelayQueue();
        delay.start();
        delay.put("now", System.currentTimeMillis());
        delay.put("not today", System.currentTimeMillis() + TimeUnit.DAYS.toMillis(1));
        until("what is due is taken", () -> delayed.items.equals(List.of("now")));
        delay.close();

        DistributedIdQueue<String> byId = QueueBuilder.builder(a, null, TEXTS, "/queues/id").buildIdQueue();
        byId.start();
        byId.put("item", "its-id");
        check(byId.flushPuts(DEADLINE_S, TimeUnit.SECONDS), "it is there");
        same(byId.remove("its-id"), 1);
        byId.close();
        survivingQueue();
    }

    /**
     * A queue whose consumers hold a lock for each item. What they have begun when their connections are lost, they may
     * leave for good, whatever the server does; so they begin later.
     */
    void survivingQueue() throws Exception {
        List<Consumer> consumers = List.of(new Consumer(), new Consumer());
        Set<String> expected = ConcurrentHashMap.newKeySet();
        DistributedQueue<String> in = QueueBuilder.builder(a, null, TEXTS, "/queues/safe").buildQueue();
        in.start();
        for (int i = 0; i < 200; i++) {
            expected.add("item-" + i);
            in.put("item-" + i);
            if (i == 100) {
                order("kill the leader");
            }
        }
        check(in.flushPuts(DEADLINE_S, TimeUnit.SECONDS), "all is there");
        in.close();
        order("start the killed server");
        a.sync().forPath("/queues");
        b.sync().forPath("/queues");
        List<DistributedQueue<String>> out = new ArrayList<>();
        for (Map.Entry<CuratorFramework, Consumer> one
            : Map.of(a, consumers.get(0), b, consumers.get(1)).entrySet()) {
            out.add(QueueBuilder.builder(one.getKey(), one.getValue(), TEXTS, "/queues/safe")
                .lockPath("/queues/locks").buildQueue());
        }
        for (DistributedQueue<String> queue : out) {
            queue.start();
        }
        until("nothing is lost", () -> {
            Set<String> found = ConcurrentHashMap.newKeySet();
            consumers.forEach(consumer -> found.addAll(consumer.items));
            return found.equals(expected);
        });
        for (DistributedQueue<String> queue : out) {
            queue.close();
        }
    }

    void barriers() throws Exception {
        DistributedBarrier barrier = new DistributedBarrier(a, "/barriers/one");
        barrier.setBarrier();
        b.sync().forPath("/barriers");
        Future<Boolean> passes = threads.submit(
            () -> new DistributedBarrier(b, "/barriers/one").waitOnBarrier(DEADLINE_S, TimeUnit.SECONDS));
        barrier.removeBarrier();
        check(passes.get(), "it is open");
        List<Future<Boolean>> both = new ArrayList<>();
        for (CuratorFramework client : List.of(a, b, a)) {
            both.add(threads.submit(() -> {
                DistributedDoubleBarrier twice = new DistributedDoubleBarrier(client, "/barriers/two", 3);
                return twice.enter(DEADLINE_S, TimeUnit.SECONDS) && twice.leave(DEADLINE_S, TimeUnit.SECONDS);
            }));
        }
        for (Future<Boolean> one : both) {
            check(one.get(), "all have entered, and left");
        }
    }

    /** Nodes that are there as long as somebody wants them. */
    void presence() throws Exception {
        try (PersistentNode node = new PersistentNode(a, CreateMode.EPHEMERAL, false, "/present/node", bytes("1"));
            PersistentTtlNode ttl = new PersistentTtlNode(a, "/present/ttl", 60_000, bytes("ttl"));
            GroupMember ofA = new GroupMember(a, "/present/group", "a", bytes("A"));
            GroupMember ofB = new GroupMember(b, "/present/group", "b", bytes("B"))) {
            node.start();
            ttl.start();
            ofA.start();
            ofB.start();
            check(node.waitForInitialCreate(DEADLINE_S, TimeUnit.SECONDS), "it is there");
            check(ttl.waitForInitialCreate(DEADLINE_S, TimeUnit.SECONDS), "it is there");
            until("both are members", () -> ofA.getCurrentMembers().keySet().equals(Set.of("a", "b")));
            b.sync().forPath("/present");
            b.delete().forPath("/present/node");
            until("it is there again", () -> b.checkExists().forPath("/present/node") != null);
            node.setData(bytes("2"));
            until("its data is new", () -> "2".equals(text(b.getData().forPath("/present/node"))));
            Stat stat = b.checkExists().forPath("/present/node");
            order("kill the leader");
            same(b.checkExists().forPath("/present/node").getCzxid(), stat.getCzxid());
            until("both are members", () -> ofB.getCurrentMembers().keySet().equals(Set.of("a", "b")));
            same(text(b.getData().forPath("/present/ttl")), "ttl");
            order("start the killed server");
        }
        b.sync().forPath("/present");
        check(b.checkExists().forPath("/present/node") == null, "it is gone");
    }

    void ends() throws Exception {
        a.create().withMode(CreateMode.EPHEMERAL).forPath("/ephemeral");
        a.close();
        b.sync().forPath("/");
        check(b.checkExists().forPath("/ephemeral") == null, "it is gone with its session");
        b.close();
        check(!states.contains(ConnectionState.LOST), "no session was lost: " + states);
    }

    public static void main(String[] arguments) throws Exception {
        CuratorRecipes client = new CuratorRecipes(arguments[0]);
        client.part("nodes", client::nodes);
        client.part("transactions", client::transactions);
        client.part("access", client::access);
        client.part("namespaces", client::namespaces);
        client.part("watches", client::watches);
        client.part("caches", client::caches);
        client.part("locks", client::locks);
        client.part("leaders", client::leaders);
        client.part("counters", client::counters);
        client.part("queues", client::queues);
        client.part("barriers", client::barriers);
        client.part("presence", client::presence);
        client.part("ends", client::ends);
        System.out.println("all is well");
        System.exit(0);
    }
}
