#!/bin/sh
# two_hosts.sh NAME FOLDER COMMAND...: four ranks of COMMAND on two hosts, of which the second is a network namespace
# called NAME with a host name of its own; ranks 0 to 2 run on the first, rank 3 on the second. `ip link set NAME down`
# cuts them apart. mpirun's process id comes into FOLDER/pid.mpirun. Takes root.
set -eu
name=$1
dir=$2
shift 2
ip netns add "$name"
ip link add "$name" type veth peer name inside netns "$name"
ip address add 10.213.7.1/24 dev "$name"
ip link set "$name" up
ip -n "$name" address add 10.213.7.2/24 dev inside
ip -n "$name" link set inside up
ip -n "$name" link set lo up
# What mpirun uses in place of ssh: HOST WORDS...
cat >"$dir/agent" <<EOF
#!/bin/sh
shift
exec ip netns exec "$name" unshare --uts sh -c 'hostname second; exec sh -c "\$0"' "\$*"
EOF
chmod +x "$dir/agent"
echo $$ >"$dir/pid.mpirun"
exec mpirun --allow-run-as-root --oversubscribe --bind-to none --host 10.213.7.1:3,10.213.7.2:1 \
  --mca plm_rsh_agent "$dir/agent" --mca plm_rsh_no_tree_spawn 1 --mca oob_tcp_if_include 10.213.7.0/24 \
  --mca btl_tcp_if_include 10.213.7.0/24 -n 4 "$@"
