#!/bin/bash
@OPTIONS@
#
# @TITLE@
# Written by bgetrain and read by SLURM; edit it and submit it by hand, or type the command again, which writes it anew:
#
#     submit                     sbatch @SCRIPT@
#     follow                     tail -F @LOG@
#     look                       squeue --job=ID
#     save, stop                 scancel --batch --signal=INT ID
#     save, start again          scancel --batch --signal=USR1 ID
#     cancel                     scancel ID      (SLURM's KillWait, 30 s by default, is left to save in)
#
# How the ranks end decides what follows:
#
#     0      done
#     2      something to mend, which the log says in one line: the job ends
#     75     interrupted and saved: the job is put back into the queue under its own number, unless it was cancelled. So end
#            time limits (SLURM sends USR1 @SECONDS@ s before), pre-emption and requests from outside.
#            Where it came soon after the start and nothing new was kept, more than @RESTARTS@ times in a row, the job ends
#     other  failed: put back at most @RESTARTS@ times; each one is a line in failures-ID.txt of the output folder
#
# A node that is lost: SLURM puts the job back. Whatever the reason, the next start goes on from the last checkpoint.

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID} starts=$((${SLURM_RESTART_COUNT:-0} + 1))
@RUN@

say() { printf '%(%F %T)T job %s: %s\n' -1 "$job" "$*"; }
ask() { facts=$(scontrol show job -o "$job" 2>/dev/null); } # SLURM's word on this job
fact() { [[ " $facts " =~ " $1="([^ ]*) ]] && printf '%s' "${BASH_REMATCH[1]}"; }
ended_early() { # by SLURM, which does not start it again
    [ "$(fact Restarts)" -lt "$starts" ] || return 1
    [ "$(fact Reason)" != TimeLimit ] || { echo "time is up"; return 0; }
    [[ $(fact PreemptTime) = [0-9]* ]] && echo "pre-empted"
}

asked= heard= stay= ranks=
hear() { # a signal is passed on, as one that srun lets through; the ranks save
    asked=yes heard=yes
    [ "$1" != INT ] || stay=yes
    [ -z "$ranks" ] || kill -USR1 "$ranks" 2>/dev/null
    if [ "$1" = TERM ] && ask && why=$(ended_early); then # saving takes longer, and SLURM may kill this shell
        scontrol requeue "$job" 2>/dev/null && say "$why: back into the queue"
    fi
}
for signal in USR1 INT TERM; do trap "hear $signal" "$signal"; done

is_back() { # `scontrol requeue` may be killed by what it has just brought about
    ask && { [ "$(fact Restarts)" -ge "$starts" ] || [[ $(fact JobState) = @(PENDING|REQUEUED|REQUEUE_HOLD) ]]; }
}

back() { # into the queue, under the same number
    if told=$(scontrol requeue "$job" 2>&1) || is_back; then
        say "$1: back into the queue, to go on from the last checkpoint"
    else
        say "$1, and cannot be put back ($told): submit it again to go on from the last checkpoint"
    fi
    exit "$status"
}

idle=$out/.idle-$job # how many starts in a row kept nothing new; its time is that of this start
each_start='^\./((slurm-|config|job|failures|provenance|metrics|events|\.)[^/]*|[^/]*\.log|(stacks|tokenizer|wandb)/.*)$'
kept() { (cd "$out" && find . -type f -newer "$idle") | grep -qvE "$each_start"; } # anything beside what each start writes
interrupted() {
    if [ "$SECONDS" -gt @SOON@ ] || [ ! -e "$idle" ] || kept; then
        rm -f "$idle"
        back interrupted
    fi
    count=$(($(<"$idle") + 1))
    echo "$count" >"$idle"
    [ "$count" -gt @RESTARTS@ ] || back interrupted
    say "interrupted $count times in a row within @SOON@ s of the start, with nothing new kept: it ends; a longer time limit helps"
    exit "$status"
}

mkdir -p "$out" && touch "$idle"
say "start $starts on $SLURM_JOB_NODELIST"
@PREPARE@
status=75
if [ -z "$asked" ]; then
@START@ &
    ranks=$!
    [ -z "$asked" ] || kill -USR1 "$ranks"       # it came in between
    while heard=; do                             # a signal ends `wait`, not the ranks
        wait "$ranks"
        status=$?
        [ -n "$heard" ] || break
    done
fi
case $asked$status in yes130 | yes138 | yes143) status=75 ;; esac # one that was not yet listening died of the signal

ask # is SLURM about to end it, and will it start it again?
state=$(fact JobState)
[ "$status" != 2 ] || { say "something is to be mended (status 2)"; exit 2; }
[ -z "$stay" ] || [ "$status" = 0 ] || { say "stopped (status $status): submit it again to go on"; exit "$status"; }
if [ -n "$state" ] && [ "$state" != RUNNING ]; then
    if [ "$(fact Restarts)" -ge "$starts" ]; then
        say "SLURM has put it back into the queue (status $status)"
        exit "$status"
    fi
    ! why=$(ended_early) || back "$why (status $status)"
    say "cancelled (status $status): submit it again to go on from the last checkpoint"
    exit "$status"
fi
[ "$status" != 0 ] || { say "done"; exit 0; }
[ "$status" != 75 ] || interrupted
[[ $(fact PreemptTime) != [0-9]* ]] || back "pre-empted (status $status)"
lost=$(sinfo --noheader --Node --nodes="$SLURM_JOB_NODELIST" --format='%N %T' 2>/dev/null | grep -E 'down|\*' | cut -d' ' -f1 | xargs)
[ -z "$lost" ] || back "$lost was lost (status $status)"
failures=$out/failures-$job.txt
say "failed (status $status) at start $starts"
mkdir -p "$out" && say "status $status at start $starts" >>"$failures" || { say "it cannot be counted in $out: it ends"; exit "$status"; }
count=$(wc -l <"$failures")
[ "$count" -gt @RESTARTS@ ] || back "failure $count, of which @RESTARTS@ are forgiven"
say "failure $count, of which @RESTARTS@ were forgiven: it ends"
exit "$status"
