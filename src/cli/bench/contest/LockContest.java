// Contenders for one of Apache Curator's InterProcessMutexes, each with a thread and a session of
// its own: each takes the lock and releases it at once, again and again.
//
// Arguments: servers (host:port, with commas), path, contenders, seconds of warming up, seconds
// that are measured. Prints one line of JSON.

import java.util.Arrays;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.retry.RetryForever;

public class LockContest {
    static final AtomicInteger inside = new AtomicInteger();

    static class Contender extends Thread {
        final CuratorFramework client;
        final InterProcessMutex mutex;
        final CountDownLatch ready;
        final CountDownLatch start;
        final long[] latenciesNs = new long[1 << 20];
        int count = 0;
        volatile long from;
        volatile long until;
        Exception failure;

        Contender(String server, String path, CountDownLatch ready, CountDownLatch start) {
            client = CuratorFrameworkFactory.newClient(server, 30_000, 15_000, new RetryForever(100));
            mutex = new InterProcessMutex(client, path);
            this.ready = ready;
            this.start = start;
        }

        @Override
        public void run() {
            try {
                client.start();
                client.blockUntilConnected();
                ready.countDown();
                start.await();
                while (System.nanoTime() < until) {
                    long asked = System.nanoTime();
                    mutex.acquire();
                    long got = System.nanoTime();
                    if (inside.incrementAndGet() != 1) {
                        throw new IllegalStateException("two hold the lock");
                    }
                    if (got >= from && got < until && count < latenciesNs.length) {
                        latenciesNs[count++] = got - asked;
                    }
                    inside.decrementAndGet();
                    mutex.release();
                }
                client.close();
            } catch (Exception error) {
                failure = error;
                ready.countDown();
            }
        }
    }

    public static void main(String[] args) throws Exception {
        String[] servers = args[0].split(",");
        int contenders = Integer.parseInt(args[2]);
        long warmUpNs = Long.parseLong(args[3]) * 1_000_000_000L;
        long measuredNs = Long.parseLong(args[4]) * 1_000_000_000L;
        CountDownLatch ready = new CountDownLatch(contenders);
        CountDownLatch start = new CountDownLatch(1);
        Contender[] all = new Contender[contenders];
        for (int n = 0; n < contenders; n++) {
            all[n] = new Contender(servers[n % servers.length], args[1], ready, start);
            all[n].start();
        }
        ready.await();
        long now = System.nanoTime();
        for (Contender contender : all) {
            contender.from = now + warmUpNs;
            contender.until = now + warmUpNs + measuredNs;
        }
        start.countDown();
        long[] sum = new long[0];
        for (Contender contender : all) {
            contender.join();
            if (contender.failure != null) {
                throw contender.failure;
            }
            int before = sum.length;
            sum = Arrays.copyOf(sum, before + contender.count);
            System.arraycopy(contender.latenciesNs, 0, sum, before, contender.count);
        }
        Arrays.sort(sum);
        System.out.printf(
            "{\"hand_overs\": %d, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f}%n",
            sum.length, at(sum, 0.5), at(sum, 0.99), at(sum, 1.0));
        System.exit(0);
    }

    static double at(long[] sorted, double share) {
        if (sorted.length == 0) {
            return 0;
        }
        int index = (int) Math.ceil(share * sorted.length) - 1;
        return sorted[Math.max(index, 0)] / 1e6;
    }
}
